/* A libnvidia-ml.so.1 with three GPUs, for the tests.
 *
 * GPU 0 says everything, GPU 1 does not support some facts, GPU 2 is ordinary. Files in
 * $NVML_STUB change what happens while a process runs:
 *   init       its number is what nvmlInit returns
 *   hang-N     GPU N's utilisation call does not return while the file is there
 *   openhang-N the same for opening GPU N
 *   lost-N     GPU N fell off the bus
 *   mig-N      GPU N is cut into two slices
 *   pcie       one byte is added for each PCIe measurement
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SUCCESS 0
#define INVALID 2
#define NOT_SUPPORTED 3
#define NO_PERMISSION 4
#define NOT_FOUND 6
#define LOST 15

struct device { int gpu; int slice; };
struct rates { unsigned gpu, memory; };
struct memory { unsigned long long total, free, used; };

static struct device cards[3] = {{0, -1}, {1, -1}, {2, -1}};
static struct device slices[3][2] = {{{0, 0}, {0, 1}}, {{1, 0}, {1, 1}}, {{2, 0}, {2, 1}}};

static FILE *control(const char *name, int gpu, const char *mode) {
    char path[512];
    if (gpu < 0) snprintf(path, sizeof path, "%s/%s", getenv("NVML_STUB"), name);
    else snprintf(path, sizeof path, "%s/%s-%d", getenv("NVML_STUB"), name, gpu);
    return fopen(path, mode);
}

static int is_set(const char *name, int gpu) {
    FILE *file = control(name, gpu, "r");
    if (file) fclose(file);
    return file != NULL;
}

static void hang_while(const char *name, int gpu) {
    while (is_set(name, gpu)) usleep(20000);
}

#define CHECK(d) do { if (is_set("lost", (d)->gpu)) return LOST; } while (0)

int nvmlInitWithFlags(unsigned flags) {
    int code = 0;
    FILE *file = control("init", -1, "r");
    if (file) {
        if (fscanf(file, "%d", &code) != 1) code = 999;
        fclose(file);
    }
    return code;
}

int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return "an error of the stub"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **device) {
    if (index > 2) return INVALID;
    hang_while("openhang", (int)index);
    *device = &cards[index];
    CHECK(*device);
    return SUCCESS;
}

int nvmlDeviceGetName(struct device *d, char *name, unsigned length) {
    CHECK(d);
    if (d->slice >= 0) snprintf(name, length, "Stub %d MIG 1g.10gb", d->gpu);
    else snprintf(name, length, "Stub GPU %c", 'A' + d->gpu);
    return SUCCESS;
}

int nvmlDeviceGetUUID(struct device *d, char *uuid, unsigned length) {
    CHECK(d);
    if (d->slice >= 0) snprintf(uuid, length, "MIG-%d-%d", d->gpu, d->slice);
    else snprintf(uuid, length, "GPU-0000000%d", d->gpu);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(struct device *d, struct memory *memory) {
    CHECK(d);
    /* The parent of slices may not be asked, as on real cards. */
    if (d->slice < 0 && is_set("mig", d->gpu)) return NO_PERMISSION;
    memory->total = (d->slice < 0 ? 24ull << 30 : 10ull << 30);
    memory->used = (unsigned long long)(d->gpu + 1) << 30;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(struct device *d, struct rates *rates) {
    CHECK(d);
    hang_while("hang", d->gpu);
    if (d->slice >= 0) return NOT_SUPPORTED;
    rates->gpu = 30 + d->gpu;
    rates->memory = 10;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(struct device *d, int sensor, unsigned *celsius) {
    CHECK(d);
    *celsius = 50 + d->gpu;
    return SUCCESS;
}

int nvmlDeviceGetTemperatureThreshold(struct device *d, int threshold, unsigned *celsius) {
    CHECK(d);
    if (threshold != 1) return INVALID;
    *celsius = 92;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(struct device *d, unsigned *milliwatts) {
    CHECK(d);
    if (d->gpu == 1) return NOT_SUPPORTED;
    *milliwatts = 123400;
    return SUCCESS;
}

int nvmlDeviceGetEnforcedPowerLimit(struct device *d, unsigned *milliwatts) {
    CHECK(d);
    if (d->gpu == 1) return NOT_SUPPORTED;
    *milliwatts = 350000;
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(struct device *d, int type, unsigned *mhz) {
    CHECK(d);
    if (type != 1) return INVALID;
    *mhz = 1410;
    return SUCCESS;
}

/* Only the name of drivers before 535: the newer one is not in this library. */
int nvmlDeviceGetCurrentClocksThrottleReasons(struct device *d, unsigned long long *reasons) {
    CHECK(d);
    *reasons = d->gpu == 0 ? 0x1 | 0x4 | 0x40 : 0x1;
    return SUCCESS;
}

int nvmlDeviceGetTotalEccErrors(struct device *d, int type, int counter, unsigned long long *n) {
    CHECK(d);
    if (d->gpu == 1) return NOT_SUPPORTED;
    *n = type == 1 && counter == 0 ? 7 : 99;
    return SUCCESS;
}

int nvmlDeviceGetPcieThroughput(struct device *d, int counter, unsigned *kib) {
    FILE *file;
    CHECK(d);
    file = control("pcie", -1, "a");
    if (file) {
        fputc('.', file);
        fclose(file);
    }
    *kib = counter == 1 ? 2000 : 1000;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(struct device *d, unsigned *current, unsigned *pending) {
    CHECK(d);
    if (d->gpu == 1) return NOT_SUPPORTED;
    *current = *pending = is_set("mig", d->gpu);
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(struct device *d, unsigned *count) {
    *count = 7;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(struct device *d, unsigned index, struct device **out) {
    if (index > 1) return NOT_FOUND;
    *out = &slices[d->gpu][index];
    return SUCCESS;
}
