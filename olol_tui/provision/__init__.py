"""A bare machine made a node, over SSH and with nothing installed there beforehand.

Facts (`facts`) → plan (`plan`, pure, shown) → steps (`steps`, each idempotent and timed),
run by `runner`. What happens on the node is done by `node/`: a few standard-library modules
that travel through the SSH session at every call (`helper`), so that nothing old is ever run.

    connect   SSH, host key verified
    facts     what the machine is and has, in one command
    python    an interpreter of 3.8 or newer
    agent     the zipapp: uploaded, checked, renamed into place
    engine    Ollama: found, installed from the console's archive, or left out
    service   the agent kept alive: systemd user unit, or detached
    health    the agent answers, and a real request came through the road
"""
