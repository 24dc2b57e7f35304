/* librknnrt.so for the board in a box: the vendor's interface over an emulated NPU that books what it is asked to do.
 *
 * It does as the vendor's library 1.5.2 does, wrong use included, where that is known and does not end the process
 * (README.md lists both). A run's answers come from npu.py on the host, over the Unix socket /run/npu.sock, one
 * connection a context; device.c has the cores, and the faults and books that its first lines list.
 */
#define _GNU_SOURCE
#include "rknn_abi.h"

#include "device.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { MAX_TENSORS = 16, PASSED_THROUGH = 0x100 };

/* npu.py describes a tensor so. */
struct tensor {
    char name[RKNN_MAX_NAME];
    uint32_t n_dims, dims[4]; /* input NHWC, outputs NCHW, or fewer dimensions and then zeros */
    int32_t zp;
    float scale;
};

struct context {
    struct booked *booked;
    int inside; /* threads in a call with this context */
    bool busy; /* an inference has begun (inputs_set) and not ended (outputs_release, or a failed run) */
    pthread_t owner; /* the thread of that inference */
    void *model; /* for rknn_dup_context */
    uint32_t model_size;
    int socket;
    pthread_mutex_t exchange; /* keeps a question and its answer together; the vendor's library has no lock */
    uint32_t n_input, n_output;
    struct tensor tensors[MAX_TENSORS]; /* inputs, then outputs */
    uint8_t *input; /* kind (uint32: type, or PASSED_THROUGH), then the values */
    uint32_t input_size;
    int8_t *output[MAX_TENSORS]; /* zeros before the first run, after a failed one those of the run before */
    int64_t last_us;
};

static struct context contexts[MAX_CONTEXTS];

/* ---- contexts ---- */

static void unload(struct context *c) {
    if (c->socket >= 0)
        close(c->socket);
    free(c->model);
    free(c->input);
    for (uint32_t i = 0; i < c->n_output; i++)
        free(c->output[i]);
}

/* The context of a handle; NULL where there is none. Books a second thread in it. */
static struct context *enter(rknn_context handle) {
    struct context *c = NULL;
    pthread_mutex_lock(&lock);
    if (handle >= 1 && handle <= (rknn_context)books.n_contexts && books.contexts[handle - 1].open) {
        c = &contexts[handle - 1];
        if (c->inside || (c->busy && !pthread_equal(c->owner, pthread_self())))
            books.shared++;
        c->inside++;
    } else if (handle) {
        books.stale++;
    }
    pthread_mutex_unlock(&lock);
    return c;
}

static int leave(struct context *c, int code) {
    pthread_mutex_lock(&lock);
    if (!--c->inside && !c->booked->open)
        unload(c);
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
        return RKNN_ERR_FAIL;
    }
    if (!counts[0]) {
        char sentence[512] = "";
        if (receive_all(c->socket, &length, sizeof length) && length < sizeof sentence)
            receive_all(c->socket, sentence, length);
        complain("rknn_init", sentence);
        return RKNN_ERR_MODEL_INVALID;
    }
    if (counts[0] != 1 || counts[0] + counts[1] > MAX_TENSORS ||
        !receive_all(c->socket, c->tensors, sizeof c->tensors[0] * (counts[0] + counts[1])))
        return RKNN_ERR_MODEL_INVALID;
    c->n_input = counts[0];
    c->n_output = counts[1];
    c->model = memcpy(malloc(size), model, size);
    c->model_size = size;
    c->input = calloc(sizeof(float), 1 + elements(&c->tensors[0]));
    *(uint32_t *)c->input = RKNN_TENSOR_UINT8;
    c->input_size = elements(&c->tensors[0]);
    for (uint32_t i = 0; i < c->n_output; i++)
        c->output[i] = calloc(1, elements(&c->tensors[1 + i]));
    return RKNN_SUCC;
}

int rknn_init(rknn_context *handle, void *model, uint32_t size, uint32_t flag, void *extend) {
    (void)flag, (void)extend;
    int code = RKNN_SUCC;
    pthread_mutex_lock(&lock);
    struct context *c = books.n_contexts < MAX_CONTEXTS ? &contexts[books.n_contexts] : NULL;
    if (asked("BOARD_FAIL_INIT", ++books.inits)) {
        complain("rknn_init", "failed to allocate memory, as BOARD_FAIL_INIT asks");
        code = RKNN_ERR_MALLOC_FAIL;
    } else if (!c) {
        code = RKNN_ERR_FAIL;
    } else if (!open_device()) {
        complain("rknn_init", "failed to open the NPU's device");
        code = RKNN_ERR_FAIL;
    } else if (size < 4 || memcmp(model, "RKNN", 4)) {
        complain("rknn_init", "not a .rknn model");
        code = RKNN_ERR_MODEL_INVALID;
    } else if ((code = load_model(c, model, size)) != RKNN_SUCC) {
        unload(c);
        memset(c, 0, sizeof *c);
    } else {
        pthread_mutex_init(&c->exchange, NULL);
        c->booked = &books.contexts[books.n_contexts];
        c->booked->open = true;
        books.opened++;
        *handle = (rknn_context)++books.n_contexts;
    }
    pthread_mutex_unlock(&lock);
    return code;
}

int rknn_init2(rknn_context *handle, void *model, uint32_t size, uint32_t flag, void *extend) {
    return rknn_init(handle, model, size, flag, extend);
}

/* A context like another; of the vendor's library it is one that shares the weights. */
int rknn_dup_context(rknn_context *handle, rknn_context *copy) {
    struct context *c = enter(*handle);
    return c ? leave(c, rknn_init(copy, c->model, c->model_size, 0, NULL)) : RKNN_ERR_CTX_INVALID;
}

/* Waits for nobody, as the vendor's does not; what a running thread uses is freed when it comes back. */
int rknn_destroy(rknn_context handle) {
    struct context *c = enter(handle);
    if (!c)
        return RKNN_ERR_CTX_INVALID;
    pthread_mutex_lock(&lock);
    books.destroyed_in_use += c->inside > 1;
    books.destroyed += c->booked->open;
    c->booked->open = false;
    pthread_mutex_unlock(&lock);
    write_report();
    return leave(c, RKNN_SUCC);
}

/* Only 0, one core, 0 and 1, or all three can be asked for, and only of SoCs with several cores. */
int rknn_set_core_mask(rknn_context handle, int32_t mask) {
    struct context *c = enter(handle);
    if (!c)
        return RKNN_ERR_CTX_INVALID;
    bool known = mask == RKNN_NPU_CORE_AUTO || mask == 1 || mask == 2 || mask == 3 || mask == 4 || mask == 7;
    bool granted = n_cores > 1 && known && mask < 1 << n_cores;
    if (!granted)
        complain("rknn_set_core_mask", n_cores == 1 ? "this SoC has one core" : "no such cores");
    pthread_mutex_lock(&lock);
    c->booked->mask = granted ? (uint32_t)mask : RKNN_NPU_CORE_AUTO;
    pthread_mutex_unlock(&lock);
    return leave(c, granted ? RKNN_SUCC : RKNN_ERR_FAIL);
}

/* ---- queries ---- */

/* Of an output with four dimensions the NPU writes channels in groups of 16: N, C / 16, H, W, 16. */
static void describe_native(struct rknn_tensor_attr *attr) {
    uint32_t channels = attr->dims[1];
    attr->n_dims = 5;
    attr->dims[1] = (channels + 15) / 16;
    attr->dims[4] = 16;
    attr->n_elems = attr->size = attr->size_with_stride;
    attr->fmt = RKNN_TENSOR_NC1HWC2;
}

static int describe(const struct context *c, bool output, bool native, struct rknn_tensor_attr *attr) {
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
    if (output && t->n_dims == 4)
        attr->size_with_stride = elements(t) / t->dims[1] * ((t->dims[1] + 15) / 16 * 16);
    if (native && output && t->n_dims == 4)
        describe_native(attr);
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
    case RKNN_QUERY_OUTPUT_ATTR:
    case RKNN_QUERY_NATIVE_OUTPUT_ATTR:
        if (size != sizeof(struct rknn_tensor_attr))
            return RKNN_ERR_PARAM_INVALID;
        return describe(c, command == RKNN_QUERY_OUTPUT_ATTR || command == RKNN_QUERY_NATIVE_OUTPUT_ATTR,
                        command == RKNN_QUERY_NATIVE_OUTPUT_ATTR, info);
    case RKNN_QUERY_PERF_RUN:
        ((struct rknn_perf_run *)info)->run_duration = c->last_us;
        return RKNN_SUCC;
    case RKNN_QUERY_SDK_VERSION: {
        struct rknn_sdk_version *version = info;
        snprintf(version->api_version, sizeof version->api_version, "2.5.0 (emulated)");
        snprintf(version->drv_version, sizeof version->drv_version, "0.9.8");
        return RKNN_SUCC;
    }
    case RKNN_QUERY_MEM_SIZE: {
        if (size != sizeof(struct rknn_mem_size))
            return RKNN_ERR_PARAM_INVALID;
        uint32_t in_out = 0; /* the model's file stands for its weights; the layers between are nowhere */
        for (uint32_t i = 0; i < c->n_input + c->n_output; i++)
            in_out += elements(&c->tensors[i]);
        *(struct rknn_mem_size *)info = (struct rknn_mem_size){.total_weight_size = c->model_size,
                                                               .total_dma_allocated_size = c->model_size + in_out};
        return RKNN_SUCC;
    }
    case RKNN_QUERY_INPUT_DYNAMIC_RANGE: /* the shapes are static */
    case RKNN_QUERY_CURRENT_INPUT_ATTR:
    case RKNN_QUERY_CURRENT_OUTPUT_ATTR:
        return RKNN_ERR_MODEL_INVALID;
    default:
        return RKNN_ERR_PARAM_INVALID;
    }
}

int rknn_query(rknn_context handle, int32_t command, void *info, uint32_t size) {
    struct context *c = enter(handle);
    return c ? leave(c, answer(c, command, info, size)) : RKNN_ERR_CTX_INVALID;
}

int rknn_set_input_shapes(rknn_context handle, uint32_t n_inputs, struct rknn_tensor_attr *attr) {
    (void)n_inputs, (void)attr;
    struct context *c = enter(handle);
    return c ? leave(c, RKNN_ERR_MODEL_INVALID) : RKNN_ERR_CTX_INVALID; /* the shapes are static */
}

/* ---- inference ---- */

static int set_input(struct context *c, const struct rknn_input *input) {
    uint32_t size = elements(&c->tensors[0]);
    if (input->index >= c->n_input || input->type < RKNN_TENSOR_FLOAT32 || input->type > RKNN_TENSOR_UINT8)
        return RKNN_ERR_PARAM_INVALID;
    if (!input->pass_through)
        size *= input->type == RKNN_TENSOR_FLOAT32 ? 4 : input->type == RKNN_TENSOR_FLOAT16 ? 2 : 1;
    if (input->size < size) {
        complain("rknn_inputs_set", "the input is smaller than the model's");
        return RKNN_ERR_PARAM_INVALID;
    }
    if (input->size > size)
        complain("rknn_inputs_set", "current input size > need input size");
    if (input->fmt != RKNN_TENSOR_NHWC && !input->pass_through)
        complain("rknn_inputs_set", "the input is not NHWC, and is taken as if it were");
    *(uint32_t *)c->input = input->pass_through ? PASSED_THROUGH : (uint32_t)input->type;
    memcpy(c->input + sizeof(uint32_t), input->buf, size);
    c->input_size = size;
    return RKNN_SUCC;
}

int rknn_inputs_set(rknn_context handle, uint32_t n_inputs, struct rknn_input *inputs) {
    struct context *c = enter(handle);
    if (!c)
        return RKNN_ERR_CTX_INVALID;
    int code = n_inputs > c->n_input ? RKNN_ERR_PARAM_INVALID : RKNN_SUCC;
    for (uint32_t i = 0; i < n_inputs && code == RKNN_SUCC; i++)
        code = set_input(c, &inputs[i]);
    if (code == RKNN_SUCC)
        set_busy(c, true);
    return leave(c, code);
}

static bool infer(void *context) {
    struct context *c = context;
    pthread_mutex_lock(&c->exchange);
    bool ok = send_message(c->socket, c->input, (uint32_t)sizeof(uint32_t) + c->input_size);
    for (uint32_t i = 0; i < c->n_output && ok; i++)
        ok = receive_all(c->socket, c->output[i], elements(&c->tensors[1 + i]));
    pthread_mutex_unlock(&c->exchange);
    return ok;
}

int rknn_run(rknn_context handle, void *extend) {
    (void)extend;
    struct context *c = enter(handle);
    if (!c)
        return RKNN_ERR_CTX_INVALID;
    bool ok = run_on_cores(c->booked, infer, c, &c->last_us);
    if (!ok)
        set_busy(c, false);
    return leave(c, ok ? RKNN_SUCC : RKNN_ERR_FAIL);
}

int rknn_wait(rknn_context handle, void *extend) { /* rknn_run has waited already: nothing is pending */
    (void)extend;
    struct context *c = enter(handle);
    return c ? leave(c, RKNN_ERR_FAIL) : RKNN_ERR_CTX_INVALID;
}

/* What each stored byte stands for. The vendor's library rounds once where it also turns NC1HWC2 into NCHW. */
static void fill_values(const struct tensor *t, float value[256]) {
    float offset = (float)t->zp * t->scale;
    for (int i = 0; i < 256; i++) {
        int8_t stored = (int8_t)i;
        value[i] = t->n_dims == 4 ? (float)((double)stored * t->scale - offset) : (float)(stored - t->zp) * t->scale;
    }
}

/* One output into the caller's buffer, or into one of our own that rknn_outputs_release frees. */
static void get_output(const struct context *c, struct rknn_output *output) {
    if (output->index >= c->n_output)
        return;
    const struct tensor *t = &c->tensors[c->n_input + output->index];
    const int8_t *stored = c->output[output->index];
    uint32_t n = elements(t), size = output->want_float ? n * (uint32_t)sizeof(float) : n;
    if (!output->is_prealloc) {
        output->buf = malloc(size);
    } else if (output->size < size) {
        complain("rknn_outputs_get", "the caller's buffer is too small, nothing is written");
        return;
    }
    output->size = size;
    if (!output->want_float) {
        memcpy(output->buf, stored, size);
        return;
    }
    float value[256], *to = output->buf;
    fill_values(t, value);
    for (uint32_t i = 0; i < n; i++)
        to[i] = value[(uint8_t)stored[i]];
}

int rknn_outputs_get(rknn_context handle, uint32_t n_outputs, struct rknn_output *outputs, void *extend) {
    (void)extend;
    struct context *c = enter(handle);
    if (!c)
        return RKNN_ERR_CTX_INVALID;
    if (n_outputs > c->n_output) {
        set_busy(c, false);
        return leave(c, RKNN_ERR_PARAM_INVALID);
    }
    for (uint32_t i = 0; i < n_outputs; i++)
        get_output(c, &outputs[i]);
    return leave(c, RKNN_SUCC);
}

int rknn_outputs_release(rknn_context handle, uint32_t n_outputs, struct rknn_output *outputs) {
    struct context *c = enter(handle);
    if (!c)
        return RKNN_ERR_CTX_INVALID;
    for (uint32_t i = 0; i < n_outputs; i++)
        if (!outputs[i].is_prealloc && outputs[i].index < c->n_output)
            free(outputs[i].buf);
    set_busy(c, false);
    return leave(c, RKNN_SUCC);
}
