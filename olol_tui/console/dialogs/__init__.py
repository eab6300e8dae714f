"""Small windows over a screen: confirm, pick, describe, help, quit."""
