/* librknnrt.so for the board in a box: the vendor's interface over an emulated NPU that books what it is asked to do.
 *
 * A run's answers come from npu.py on the host, over the Unix socket /run/npu.sock, one connection a context; what is
 * emulated here is contexts, cores and faults. /proc/device-tree/compatible says how many cores there are; each runs one
 * inference at a time, jobs in the order of their arrival. Environment:
 *
 *   BOARD_REPORT     file for the books, JSON, written at exit (and before a run hangs)
 *   BOARD_RUN_MS     least milliseconds a run takes a core, 30 if not set
 *   BOARD_FAIL_INIT  the Nth rknn_init of the process fails (counted from 1)
 *   BOARD_FAIL_RUN   the Nth rknn_run fails, and so does the rknn_outputs_get after it
 *   BOARD_HANG_RUN   the Nth rknn_run never returns
 */
#define _GNU_SOURCE
#include "rknn_abi.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CORES = 3, MAX_CONTEXTS = 256, MAX_TENSORS = 16 };

/* npu.py describes a tensor so. */
struct tensor {
    char name[RKNN_MAX_NAME];
    uint32_t n_dims, dims[4]; /* input NHWC, outputs NCHW, or fewer dimensions and then zeros */
    int32_t zp;
    float scale;
};

struct context {
    bool open, ran; /* ran: there are outputs to get */
    int socket, inside; /* inside: threads in a call with this context */
    bool busy; /* an inference has begun (inputs_set) and not ended (outputs_release) */
    pthread_t owner; /* the thread of that inference */
    pthread_mutex_t turn; /* keeps the connection whole where two threads meet here all the same */
    uint32_t mask, n_input, n_output;
    struct tensor tensors[MAX_TENSORS]; /* inputs, then outputs */
    uint8_t *input;
    int8_t *output[MAX_TENSORS];
    long runs;
    int64_t last_us;
};

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

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* over all below, but not over what a context's turn protects */
static pthread_cond_t core_freed = PTHREAD_COND_INITIALIZER;
static struct context contexts[MAX_CONTEXTS];
static struct core cores[MAX_CORES];
static struct job *jobs;
static int n_cores = 1, n_contexts;
static long n_init, n_run, opened, destroyed, shared;
static char soc[32] = "unknown";

static void complain(const char *call, const char *what) {
    fprintf(stderr, "E RKNN (emulated): %s: %s\n", call, what);
}

static int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000) + t.tv_nsec / 1000;
}

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? atol(text) : otherwise;
}

/* ---- books ---- */

static void write_report(void) {
    const char *path = getenv("BOARD_REPORT");
    FILE *file = path && *path ? fopen(path, "w") : NULL;
    if (!file)
        return;
    pthread_mutex_lock(&lock);
    fprintf(file, "{\"soc\": \"%s\", \"cores\": [", soc);
    for (int i = 0; i < n_cores; i++)
        fprintf(file, "%s{\"runs\": %ld, \"busy_ms\": %lld}", i ? ", " : "", cores[i].runs, (long long)cores[i].busy_us / 1000);
    fprintf(file, "],\n \"contexts\": [");
    for (int i = 0; i < n_contexts; i++)
        fprintf(file, "%s{\"mask\": %u, \"runs\": %ld, \"open\": %s}", i ? ", " : "", contexts[i].mask, contexts[i].runs,
                contexts[i].open ? "true" : "false");
    fprintf(file, "],\n \"inits\": %ld, \"opened\": %ld, \"destroyed\": %ld, \"runs\": %ld, \"shared\": %ld}\n", n_init, opened,
            destroyed, n_run, shared);
    pthread_mutex_unlock(&lock);
    fclose(file);
}

__attribute__((constructor)) static void boot(void) {
    char names[256] = "";
    FILE *file = fopen("/proc/device-tree/compatible", "r");
    size_t length = file ? fread(names, 1, sizeof names - 1, file) : 0;
    if (file)
        fclose(file);
    for (char *name = names; name < names + length; name += strlen(name) + 1)
        if (!strncmp(name, "rockchip,", 9))
            snprintf(soc, sizeof soc, "%s", name + 9); /* the last one is the SoC's family */
    n_cores = !strcmp(soc, "rk3588") ? 3 : !strcmp(soc, "rk3576") ? 2 : 1;
}

__attribute__((destructor)) static void shut_down(void) {
    write_report();
}

/* ---- contexts ---- */

/* The context of a handle, with its turn taken; NULL where there is none. Books a second thread in it. */
static struct context *enter(rknn_context handle) {
    struct context *c = NULL;
    pthread_mutex_lock(&lock);
    if (handle >= 1 && handle <= (rknn_context)n_contexts && contexts[handle - 1].open) {
        c = &contexts[handle - 1];
        if (c->inside || (c->busy && !pthread_equal(c->owner, pthread_self())))
            shared++;
        c->inside++;
    }
    pthread_mutex_unlock(&lock);
    if (c)
        pthread_mutex_lock(&c->turn);
    return c;
}

static int leave(struct context *c, int code) {
    pthread_mutex_unlock(&c->turn);
    pthread_mutex_lock(&lock);
    c->inside--;
    pthread_mutex_unlock(&lock);
    return code;
}

static void set_busy(struct context *c, bool busy) {
    pthread_mutex_lock(&lock);
    c->busy = busy;
    c->owner = pthread_self();
    pthread_mutex_unlock(&lock);
}

static uint32_t elements(const struct tensor *t) {
    uint32_t n = 1;
    for (uint32_t i = 0; i < t->n_dims; i++)
        n *= t->dims[i];
    return n;
}

/* ---- the connection to npu.py: a length in bytes, then as many bytes ---- */

static bool send_all(int socket, const void *data, size_t size) {
    for (const char *at = data; size;) {
        ssize_t n = send(socket, at, size, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += n;
        size -= (size_t)n;
    }
    return true;
}

static bool receive_all(int socket, void *data, size_t size) {
    for (char *at = data; size;) {
        ssize_t n = recv(socket, at, size, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += n;
        size -= (size_t)n;
    }
    return true;
}

static bool send_message(int socket, const void *data, uint32_t size) {
    return send_all(socket, &size, sizeof size) && send_all(socket, data, size);
}

/* Hands the model to npu.py. Its answer: how many inputs and outputs, then their descriptions; or 0, 0 and a sentence. */
static int load_model(struct context *c, const void *model, uint32_t size) {
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/run/npu.sock"};
    uint32_t counts[2], length;
    c->socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(c->socket, (struct sockaddr *)&address, sizeof address) || !send_message(c->socket, model, size) ||
        !receive_all(c->socket, counts, sizeof counts)) {
        complain("rknn_init", "npu.py does not answer");
        return RKNN_ERR_DEVICE_UNAVAILABLE;
    }
    if (!counts[0]) {
        char sentence[512] = "";
        if (receive_all(c->socket, &length, sizeof length) && length < sizeof sentence)
            receive_all(c->socket, sentence, length);
        complain("rknn_init", sentence);
        return RKNN_ERR_MODEL_INVALID;
    }
    c->n_input = counts[0];
    c->n_output = counts[1];
    if (c->n_input != 1 || c->n_input + c->n_output > MAX_TENSORS ||
        !receive_all(c->socket, c->tensors, sizeof c->tensors[0] * (c->n_input + c->n_output)))
        return RKNN_ERR_MODEL_INVALID;
    c->input = malloc(elements(&c->tensors[0]));
    for (uint32_t i = 0; i < c->n_output; i++)
        c->output[i] = malloc(elements(&c->tensors[1 + i]));
    return RKNN_SUCC;
}

static void unload(struct context *c) {
    close(c->socket);
    free(c->input);
    for (uint32_t i = 0; i < c->n_output; i++)
        free(c->output[i]);
}

int rknn_init(rknn_context *handle, void *model, uint32_t size, uint32_t flag, void *extend) {
    (void)flag, (void)extend;
    struct context *c = NULL;
    pthread_mutex_lock(&lock);
    long number = ++n_init;
    if (n_contexts < MAX_CONTEXTS)
        c = &contexts[n_contexts];
    int code = RKNN_SUCC;
    if (number == setting("BOARD_FAIL_INIT", 0)) {
        complain("rknn_init", "fails, as BOARD_FAIL_INIT asks");
        code = RKNN_ERR_FAIL;
    } else if (!c) {
        code = RKNN_ERR_FAIL;
    } else if (access("/dev/dri/renderD129", F_OK)) {
        complain("rknn_init", "failed to open the NPU's device");
        code = RKNN_ERR_DEVICE_UNAVAILABLE;
    } else if (size < 4 || memcmp(model, "RKNN", 4)) {
        complain("rknn_init", "not a .rknn model");
        code = RKNN_ERR_MODEL_INVALID;
    } else if ((code = load_model(c, model, size)) != RKNN_SUCC) {
        close(c->socket);
    } else {
        pthread_mutex_init(&c->turn, NULL);
        c->open = true;
        opened++;
        *handle = (rknn_context)++n_contexts;
    }
    pthread_mutex_unlock(&lock);
    return code;
}

int rknn_init2(rknn_context *handle, void *model, uint32_t size, uint32_t flag, void *extend) {
    return rknn_init(handle, model, size, flag, extend);
}

int rknn_destroy(rknn_context handle) {
    struct context *c = enter(handle);
    if (!c)
        return RKNN_ERR_CTX_INVALID;
    unload(c);
    pthread_mutex_lock(&lock);
    c->open = false;
    destroyed++;
    pthread_mutex_unlock(&lock);
    return leave(c, RKNN_SUCC);
}

/* Only 0, one core, 0 and 1, or all three can be asked for, and only of SoCs with several cores. */
int rknn_set_core_mask(rknn_context handle, int32_t mask) {
    struct context *c = enter(handle);
    if (!c)
        return RKNN_ERR_CTX_INVALID;
    bool known = mask == 1 || mask == 2 || mask == 3 || mask == 4 || mask == 7;
    if (n_cores == 1) {
        complain("rknn_set_core_mask", "this SoC has one core");
        return leave(c, RKNN_ERR_FAIL);
    }
    if (mask != RKNN_NPU_CORE_AUTO && mask != RKNN_NPU_CORE_ALL && !(known && mask < 1 << n_cores)) {
        complain("rknn_set_core_mask", "no such cores");
        return leave(c, RKNN_ERR_PARAM_INVALID);
    }
    pthread_mutex_lock(&lock);
    c->mask = (uint32_t)mask;
    pthread_mutex_unlock(&lock);
    return leave(c, RKNN_SUCC);
}

/* ---- queries ---- */

static int describe(const struct context *c, bool output, struct rknn_tensor_attr *attr) {
    if (attr->index >= (output ? c->n_output : c->n_input))
        return RKNN_ERR_PARAM_INVALID;
    const struct tensor *t = &c->tensors[attr->index + (output ? c->n_input : 0)];
    attr->n_dims = t->n_dims;
    memcpy(attr->dims, t->dims, sizeof t->dims);
    memcpy(attr->name, t->name, sizeof t->name);
    attr->n_elems = attr->size = attr->size_with_stride = elements(t);
    attr->fmt = !output ? RKNN_TENSOR_NHWC : t->n_dims == 4 ? RKNN_TENSOR_NCHW : RKNN_TENSOR_UNDEFINED;
    attr->type = RKNN_TENSOR_INT8;
    attr->qnt_type = RKNN_TENSOR_QNT_AFFINE_ASYMMETRIC;
    attr->zp = t->zp;
    attr->scale = t->scale;
    attr->w_stride = output ? 0 : t->dims[2];
    return RKNN_SUCC;
}

static int answer(const struct context *c, int32_t command, void *info, uint32_t size) {
    switch (command) {
    case RKNN_QUERY_IN_OUT_NUM:
        if (size != sizeof(struct rknn_input_output_num))
            return RKNN_ERR_PARAM_INVALID;
        *(struct rknn_input_output_num *)info = (struct rknn_input_output_num){c->n_input, c->n_output};
        return RKNN_SUCC;
    case RKNN_QUERY_INPUT_ATTR:
    case RKNN_QUERY_NATIVE_INPUT_ATTR:
    case RKNN_QUERY_CURRENT_INPUT_ATTR:
    case RKNN_QUERY_OUTPUT_ATTR:
    case RKNN_QUERY_NATIVE_OUTPUT_ATTR:
    case RKNN_QUERY_CURRENT_OUTPUT_ATTR:
        if (size != sizeof(struct rknn_tensor_attr))
            return RKNN_ERR_PARAM_INVALID;
        return describe(c, command == RKNN_QUERY_OUTPUT_ATTR || command == RKNN_QUERY_NATIVE_OUTPUT_ATTR ||
                               command == RKNN_QUERY_CURRENT_OUTPUT_ATTR, info);
    case RKNN_QUERY_PERF_RUN:
        ((struct rknn_perf_run *)info)->run_duration = c->last_us;
        return RKNN_SUCC;
    case RKNN_QUERY_SDK_VERSION: {
        struct rknn_sdk_version *version = info;
        snprintf(version->api_version, sizeof version->api_version, "2.5.0 (emulated)");
        snprintf(version->drv_version, sizeof version->drv_version, "0.9.8");
        return RKNN_SUCC;
    }
    case RKNN_QUERY_INPUT_DYNAMIC_RANGE: /* the shapes are static */
        return RKNN_ERR_MODEL_INVALID;
    default:
        return RKNN_ERR_PARAM_INVALID;
    }
}

int rknn_query(rknn_context handle, int32_t command, void *info, uint32_t size) {
    struct context *c = enter(handle);
    if (!c)
        return RKNN_ERR_CTX_INVALID;
    return leave(c, answer(c, command, info, size));
}

int rknn_set_input_shapes(rknn_context handle, uint32_t n_inputs, struct rknn_tensor_attr *attr) {
    struct context *c = enter(handle);
    if (!c)
        return RKNN_ERR_CTX_INVALID;
    bool same = n_inputs == c->n_input && !memcmp(attr->dims, c->tensors[0].dims, sizeof c->tensors[0].dims);
    return leave(c, same ? RKNN_SUCC : RKNN_ERR_PARAM_INVALID);
}

/* ---- inference ---- */

int rknn_inputs_set(rknn_context handle, uint32_t n_inputs, struct rknn_input *inputs) {
    struct context *c = enter(handle);
    if (!c)
        return RKNN_ERR_CTX_INVALID;
    if (n_inputs != c->n_input || inputs[0].type != RKNN_TENSOR_UINT8 || inputs[0].fmt != RKNN_TENSOR_NHWC || inputs[0].pass_through) {
        complain("rknn_inputs_set", "the emulated NPU takes one input, uint8 NHWC");
        return leave(c, RKNN_ERR_INPUT_INVALID);
    }
    uint32_t size = elements(&c->tensors[0]);
    if (inputs[0].size < size) { /* of a larger one the vendor's library takes the beginning */
        complain("rknn_inputs_set", "the input is smaller than the model's");
        return leave(c, RKNN_ERR_PARAM_INVALID);
    }
    memcpy(c->input, inputs[0].buf, size);
    set_busy(c, true);
    return leave(c, RKNN_SUCC);
}

/* The cores a mask asks for, as bits. AUTO takes the one with the fewest runs that no job holds. The lock is held. */
static uint32_t wanted(uint32_t mask) {
    if (mask == RKNN_NPU_CORE_ALL)
        return (1u << n_cores) - 1;
    if (mask != RKNN_NPU_CORE_AUTO)
        return mask;
    int best = 0;
    for (int i = 1; i < n_cores; i++)
        if (cores[i].busy < cores[best].busy || (cores[i].busy == cores[best].busy && cores[i].runs < cores[best].runs))
            best = i;
    return 1u << best;
}

/* Whether a job's cores are free and no earlier job waits for one of them. The lock is held. */
static bool may_start(const struct job *job) {
    uint32_t taken = 0;
    for (int i = 0; i < n_cores; i++)
        taken |= (uint32_t)cores[i].busy << i;
    for (const struct job *earlier = jobs; earlier != job; earlier = earlier->next)
        taken |= earlier->cores;
    return !(taken & job->cores);
}

static void set_cores(uint32_t mask, bool busy, int64_t us) {
    for (int i = 0; i < n_cores; i++)
        if (mask >> i & 1) {
            cores[i].busy = busy;
            cores[i].runs += busy;
            cores[i].busy_us += us;
        }
}

/* Waits for the cores and books them. */
static uint32_t take_cores(struct context *c) {
    pthread_mutex_lock(&lock);
    struct job job = {wanted(c->mask), NULL}, **place = &jobs;
    while (*place)
        place = &(*place)->next;
    *place = &job;
    while (!may_start(&job))
        pthread_cond_wait(&core_freed, &lock);
    for (place = &jobs; *place != &job;)
        place = &(*place)->next;
    *place = job.next;
    set_cores(job.cores, true, 0);
    c->runs++;
    pthread_mutex_unlock(&lock);
    return job.cores;
}

static bool infer(struct context *c) {
    if (!send_message(c->socket, c->input, elements(&c->tensors[0])))
        return false;
    for (uint32_t i = 0; i < c->n_output; i++)
        if (!receive_all(c->socket, c->output[i], elements(&c->tensors[1 + i])))
            return false;
    return true;
}

static void sleep_until(int64_t us) {
    struct timespec t = {us / 1000000, us % 1000000 * 1000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
        ;
}

int rknn_run(rknn_context handle, void *extend) {
    (void)extend;
    struct context *c = enter(handle);
    if (!c)
        return RKNN_ERR_CTX_INVALID;
    pthread_mutex_lock(&lock);
    long number = ++n_run;
    pthread_mutex_unlock(&lock);
    uint32_t taken = take_cores(c);
    int64_t began = now_us();
    if (number == setting("BOARD_HANG_RUN", 0)) {
        write_report();
        complain("rknn_run", "hangs, as BOARD_HANG_RUN asks");
        for (;;)
            pause();
    }
    if (number == setting("BOARD_FAIL_RUN", 0)) {
        complain("rknn_run", "failed to submit!");
        c->ran = false;
    } else {
        c->ran = infer(c);
        sleep_until(began + setting("BOARD_RUN_MS", 30) * 1000);
    }
    c->last_us = now_us() - began;
    pthread_mutex_lock(&lock);
    set_cores(taken, false, c->last_us);
    pthread_cond_broadcast(&core_freed);
    pthread_mutex_unlock(&lock);
    return leave(c, c->ran ? RKNN_SUCC : RKNN_ERR_FAIL);
}

int rknn_wait(rknn_context handle, void *extend) { /* rknn_run has waited already */
    (void)extend;
    struct context *c = enter(handle);
    return c ? leave(c, RKNN_SUCC) : RKNN_ERR_CTX_INVALID;
}

/* One output into the caller's buffer, or into one of our own that rknn_outputs_release frees. */
static int get_output(const struct context *c, struct rknn_output *output) {
    if (output->index >= c->n_output)
        return RKNN_ERR_OUTPUT_INVALID;
    const struct tensor *t = &c->tensors[c->n_input + output->index];
    const int8_t *stored = c->output[output->index];
    uint32_t n = elements(t), size = output->want_float ? n * (uint32_t)sizeof(float) : n;
    if (!output->is_prealloc)
        output->buf = malloc(size);
    else if (output->size < size)
        return RKNN_ERR_OUTPUT_INVALID;
    output->size = size;
    if (!output->want_float) {
        memcpy(output->buf, stored, size);
        return RKNN_SUCC;
    }
    float value[256], *to = output->buf; /* of each stored byte */
    for (int i = 0; i < 256; i++)
        value[i] = (float)((int8_t)i - t->zp) * t->scale;
    for (uint32_t i = 0; i < n; i++)
        to[i] = value[(uint8_t)stored[i]];
    return RKNN_SUCC;
}

int rknn_outputs_get(rknn_context handle, uint32_t n_outputs, struct rknn_output *outputs, void *extend) {
    (void)extend;
    struct context *c = enter(handle);
    if (!c)
        return RKNN_ERR_CTX_INVALID;
    int code = c->ran && n_outputs == c->n_output ? RKNN_SUCC : RKNN_ERR_OUTPUT_INVALID;
    for (uint32_t i = 0; i < n_outputs && code == RKNN_SUCC; i++)
        code = get_output(c, &outputs[i]);
    if (code != RKNN_SUCC)
        set_busy(c, false);
    return leave(c, code);
}

int rknn_outputs_release(rknn_context handle, uint32_t n_outputs, struct rknn_output *outputs) {
    struct context *c = enter(handle);
    if (!c)
        return RKNN_ERR_CTX_INVALID;
    for (uint32_t i = 0; i < n_outputs; i++)
        if (!outputs[i].is_prealloc)
            free(outputs[i].buf);
    set_busy(c, false);
    return leave(c, RKNN_SUCC);
}
