/* See device.h. Environment:
 *
 *   BOARD_REPORT     file for the report (JSON), written at exit, when a context ends, and before a run hangs
 *   BOARD_RUN_MS     minimum milliseconds of a run, default 30
 *   BOARD_FAIL_INIT  these rknn_init calls fail, out of memory or with the code BOARD_FAIL_CODE
 *   BOARD_FAIL_RUN   these rknn_run calls fail
 *   BOARD_HANG_RUN   these rknn_run calls hang: they occupy their core, and fail at the driver's timeout
 *   BOARD_HANG_CORE  the same for every run on these cores, numbered from 0
 *   BOARD_HANG_MS    the driver's timeout; default: that of the library, 6000 or more
 *   BOARD_STUCK_RUN  these rknn_run calls never return; their core continues with other runs
 *
 * "These" is a list of numbers, from 1, and ranges: "20", "3,7-9", "20-" (from the 20th on).
 */
#define _GNU_SOURCE
#include "device.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct core {
    bool busy;
    long runs;
    int64_t busy_us;
};

/* One run that waits for its cores, in the order of arrival. */
struct job {
    uint32_t cores;
    struct job *next;
};

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
struct report report;
int n_cores = 1;
static pthread_cond_t core_freed = PTHREAD_COND_INITIALIZER;
static struct core cores[MAX_CORES];
static struct job *jobs;
static char soc[32] = "unknown";

void complain(const char *call, const char *what) {
    fprintf(stderr, "E RKNN (emulated): %s: %s\n", call, what);
}

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? atol(text) : otherwise;
}

bool asked(const char *name, long number) {
    const char *text = getenv(name);
    while (text && *text) {
        char *end;
        long from = strtol(text, &end, 10), to = from;
        if (*end == '-') {
            const char *second = end + 1;
            to = strtol(second, &end, 10);
            if (end == second)
                to = number;
        }
        if (from <= number && number <= to)
            return true;
        text = *end == ',' ? end + 1 : NULL;
    }
    return false;
}

/* ---- the report ---- */

static void write_context(FILE *file, const char *between, const struct record *c) {
    fprintf(file, "%s{\"mask\": %u, \"runs\": %ld, \"open\": %s, \"submits\": [", between, c->mask, c->runs,
            c->open ? "true" : "false");
    for (int mask = 0; mask < 8; mask++)
        fprintf(file, "%s%ld", mask ? ", " : "", c->submits[mask]);
    fprintf(file, "]}");
}

void write_report(void) {
    const char *path = getenv("BOARD_REPORT");
    FILE *file = path && *path ? fopen(path, "w") : NULL;
    if (!file)
        return;
    pthread_mutex_lock(&lock);
    fprintf(file, "{\"soc\": \"%s\", \"cores\": [", soc);
    for (int i = 0; i < n_cores; i++)
        fprintf(file, "%s{\"runs\": %ld, \"busy_ms\": %lld}", i ? ", " : "", cores[i].runs, (long long)cores[i].busy_us / 1000);
    fprintf(file, "],\n \"contexts\": [");
    for (int i = 0; i < report.n_contexts; i++)
        write_context(file, i ? ", " : "", &report.contexts[i]);
    fprintf(file,
            "],\n \"inits\": %ld, \"opened\": %ld, \"destroyed\": %ld, \"runs\": %ld, \"failed\": %ld,"
            "\n \"shared\": %ld, \"stale\": %ld, \"destroyed_in_use\": %ld, \"memory\": %ld, \"memory_most\": %ld}\n",
            report.inits, report.opened, report.destroyed, report.runs, report.failed, report.shared, report.stale,
            report.destroyed_in_use, report.memory, report.memory_most);
    fclose(file);
    pthread_mutex_unlock(&lock);
}

static bool begins(const char *text, const char *with) {
    return !strncmp(text, with, strlen(with));
}

__attribute__((constructor)) static void boot(void) {
    char names[256] = "";
    FILE *file = fopen("/proc/device-tree/compatible", "r");
    size_t length = file ? fread(names, 1, sizeof names - 1, file) : 0;
    if (file)
        fclose(file);
    for (char *name = names; name < names + length; name += strlen(name) + 1)
        if (begins(name, "rockchip,"))
            snprintf(soc, sizeof soc, "%s", name + 9); /* the last name is the SoC's family */
    n_cores = begins(soc, "rk3588") || begins(soc, "rk3582") ? 3 : begins(soc, "rk3576") ? 2 : 1;
}

__attribute__((destructor)) static void shut_down(void) {
    if (report.inits || report.n_contexts) /* the emulated driver is loaded into every program */
        write_report();
}

/* ---- the device ---- */

bool open_device(void) {
    static int device = -1;
    DIR *folder = device < 0 ? opendir("/dev/dri") : NULL;
    if (!folder)
        return device >= 0;
    for (struct dirent *entry; device < 0 && (entry = readdir(folder));)
        if (begins(entry->d_name, "card"))
            device = openat(dirfd(folder), entry->d_name, O_RDWR | O_CLOEXEC);
    closedir(folder);
    return device >= 0;
}

/* ---- the cores ---- */

static int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000) + t.tv_nsec / 1000;
}

static void sleep_until(int64_t us) {
    struct timespec t = {us / 1000000, us % 1000000 * 1000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
        ;
}

/* The cores of a mask, as bits. AUTO: the free core with the fewest runs. The caller holds the lock. */
static uint32_t wanted(uint32_t mask) {
    if (mask)
        return mask;
    int best = 0;
    for (int i = 1; i < n_cores; i++)
        if (cores[i].busy < cores[best].busy || (cores[i].busy == cores[best].busy && cores[i].runs < cores[best].runs))
            best = i;
    return 1u << best;
}

/* True if a job's cores are free and no earlier job waits for one of them. The caller holds the lock. */
static bool may_start(const struct job *job) {
    uint32_t taken = 0;
    for (int i = 0; i < n_cores; i++)
        taken |= (uint32_t)cores[i].busy << i;
    for (const struct job *earlier = jobs; earlier != job; earlier = earlier->next)
        taken |= earlier->cores;
    return !(taken & job->cores);
}

/* Waits for the cores and occupies them. The caller holds the lock. */
static uint32_t take_cores(uint32_t mask) {
    struct job job = {wanted(mask), NULL}, **place = &jobs;
    while (*place)
        place = &(*place)->next;
    *place = &job;
    while (!may_start(&job))
        pthread_cond_wait(&core_freed, &lock);
    for (place = &jobs; *place != &job;)
        place = &(*place)->next;
    *place = job.next;
    for (int i = 0; i < n_cores; i++)
        cores[i].busy |= job.cores >> i & 1;
    return job.cores;
}

static bool on_a_hung_core(uint32_t taken) {
    for (int i = 0; i < n_cores; i++)
        if (taken >> i & 1 && asked("BOARD_HANG_CORE", i))
            return true;
    return false;
}

/* Waits for the time of a run or of the driver's timeout. True if there is an answer. */
static bool attempt(struct piece *piece, long number, uint32_t taken) {
    int64_t began = now_us();
    bool ok = false;
    if ((piece->begins_a_run && asked("BOARD_HANG_RUN", number)) || on_a_hung_core(taken)) {
        write_report();
        complain("the NPU", "hangs, as BOARD_HANG_RUN or BOARD_HANG_CORE ask");
        sleep_until(began + setting("BOARD_HANG_MS", piece->patience_ms) * 1000);
    } else if (!piece->begins_a_run) {
        ok = piece->compute(piece->data);
    } else if (!asked("BOARD_FAIL_RUN", number)) {
        ok = piece->compute(piece->data);
        sleep_until(began + setting("BOARD_RUN_MS", 30) * 1000);
    }
    piece->us = now_us() - began;
    return ok;
}

bool run_on_cores(struct record *context, struct piece *piece) {
    pthread_mutex_lock(&lock);
    long number = report.runs += piece->begins_a_run;
    context->runs += piece->begins_a_run;
    if (piece->begins_a_run && asked("BOARD_STUCK_RUN", number)) {
        pthread_mutex_unlock(&lock);
        write_report();
        complain("the NPU", "never returns, as BOARD_STUCK_RUN asks");
        for (;;)
            pause();
    }
    uint32_t taken = take_cores(piece->mask);
    pthread_mutex_unlock(&lock);
    bool ok = attempt(piece, number, taken);
    pthread_mutex_lock(&lock);
    report.failed += !ok;
    for (int i = 0; i < n_cores; i++)
        if (taken >> i & 1) {
            cores[i].busy = false;
            cores[i].runs += piece->begins_a_run;
            cores[i].busy_us += piece->us;
        }
    pthread_cond_broadcast(&core_freed);
    pthread_mutex_unlock(&lock);
    return ok;
}
