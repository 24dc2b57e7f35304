/* librknnrt.so for the board in a box: the vendor's interface over an emulated NPU that reports its calls.
 *
 * It behaves like the vendor's library 1.5.2, also if it is used wrongly, except where that would crash the process
 * (see README.md). The outputs of a run come from npu.py on the host, over the Unix socket /run/npu.sock, with one
 * connection per context. device.c has the cores, faults and the report.
 */
#define _GNU_SOURCE
#include "rknn_abi.h"

#include "device.h"

#include "link.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct context {
    struct record *record;
    int inside; /* threads in a call with this context */
    bool busy; /* between inputs_set and outputs_release or a failed run */
    pthread_t owner; /* the thread of that inference */
    void *model; /* for rknn_dup_context */
    uint32_t model_size;
    int link;
    pthread_mutex_t exchange; /* one request and its answer at a time; the vendor's library has no lock */
    struct description tensors;
    uint8_t *input; /* in the format of link_compute() */
    uint32_t input_size;
    int8_t *output[MAX_TENSORS]; /* zeros before the first run; after a failed run those of the previous one */
    int64_t last_us;
};

static struct context contexts[MAX_CONTEXTS];

/* ---- contexts ---- */

static void unload(struct context *c) {
    link_close(c->link, &c->tensors, c->output);
    free(c->model);
    free(c->input);
}

/* The context of a handle, or NULL. Counts a second thread in it. */
static struct context *enter(rknn_context handle) {
    struct context *c = NULL;
    pthread_mutex_lock(&lock);
    if (handle >= 1 && handle <= (rknn_context)report.n_contexts && report.contexts[handle - 1].open) {
        c = &contexts[handle - 1];
        if (c->inside || (c->busy && !pthread_equal(c->owner, pthread_self())))
            report.shared++;
        c->inside++;
    } else if (handle) {
        report.stale++;
    }
    pthread_mutex_unlock(&lock);
    return c;
}

static int leave(struct context *c, int code) {
    pthread_mutex_lock(&lock);
    if (!--c->inside && !c->record->open)
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

static const struct tensor *input_of(const struct context *c) {
    return &c->tensors.tensors[0];
}

static const struct tensor *output_of(const struct context *c, uint32_t index) {
    return &c->tensors.tensors[c->tensors.n_input + index];
}

/* The same checks as in vision/model.py: a .rknn has a head of 64 bytes with the length of the body, the body, and JSON
 * after its length. */
static bool is_whole(const uint8_t *model, uint32_t size) {
    uint64_t body, json;
    if (size < 72 || memcmp(model, "RKNN", 4))
        return false;
    memcpy(&body, model + 16, sizeof body);
    if (body > size - 72)
        return false;
    memcpy(&json, model + 64 + body, sizeof json);
    return json <= size - 72 - body;
}

static int load_model(struct context *c, const void *model, uint32_t size) {
    char sentence[512] = "";
    c->link = link_open(model, size, &c->tensors, sentence);
    if (c->link < 0) {
        complain("rknn_init", sentence);
        memset(c, 0, sizeof *c);
        return RKNN_ERR_MODEL_INVALID;
    }
    c->model = memcpy(malloc(size), model, size);
    c->model_size = size;
    c->input = calloc(sizeof(float), 1 + elements(input_of(c)));
    *(uint32_t *)c->input = RKNN_TENSOR_UINT8;
    c->input_size = elements(input_of(c));
    for (uint32_t i = 0; i < c->tensors.n_output; i++)
        c->output[i] = calloc(1, elements(output_of(c, i)));
    return RKNN_SUCC;
}

int rknn_init(rknn_context *handle, void *model, uint32_t size, uint32_t flag, void *extend) {
    (void)flag, (void)extend;
    int code = RKNN_SUCC;
    pthread_mutex_lock(&lock);
    struct context *c = report.n_contexts < MAX_CONTEXTS ? &contexts[report.n_contexts] : NULL;
    if (asked("BOARD_FAIL_INIT", ++report.inits)) {
        complain("rknn_init", "fails, as BOARD_FAIL_INIT asks");
        code = getenv("BOARD_FAIL_CODE") ? atoi(getenv("BOARD_FAIL_CODE")) : RKNN_ERR_MALLOC_FAIL;
    } else if (!c) {
        code = RKNN_ERR_FAIL;
    } else if (!open_device()) {
        complain("rknn_init", "failed to open the NPU's device");
        code = RKNN_ERR_FAIL;
    } else if (!is_whole(model, size)) {
        complain("rknn_init", "not a .rknn model, or not all of it");
        code = RKNN_ERR_MODEL_INVALID;
    } else if ((code = load_model(c, model, size)) == RKNN_SUCC) {
        pthread_mutex_init(&c->exchange, NULL);
        c->record = &report.contexts[report.n_contexts];
        c->record->open = true;
        report.opened++;
        *handle = (rknn_context)++report.n_contexts;
    }
    pthread_mutex_unlock(&lock);
    return code;
}

int rknn_init2(rknn_context *handle, void *model, uint32_t size, uint32_t flag, void *extend) {
    return rknn_init(handle, model, size, flag, extend);
}

/* A copy of a context. With the vendor's library it would share the weights. */
int rknn_dup_context(rknn_context *handle, rknn_context *copy) {
    struct context *c = enter(*handle);
    return c ? leave(c, rknn_init(copy, c->model, c->model_size, 0, NULL)) : RKNN_ERR_CTX_INVALID;
}

/* Does not wait, like the vendor's. Memory that a running thread uses is freed when its call returns. */
int rknn_destroy(rknn_context handle) {
    struct context *c = enter(handle);
    if (!c)
        return RKNN_ERR_CTX_INVALID;
    pthread_mutex_lock(&lock);
    report.destroyed_in_use += c->inside > 1;
    report.destroyed += c->record->open;
    c->record->open = false;
    pthread_mutex_unlock(&lock);
    write_report();
    return leave(c, RKNN_SUCC);
}

/* Valid masks are 0, one core, cores 0 and 1, or all three, on SoCs with several cores only. */
int rknn_set_core_mask(rknn_context handle, int32_t mask) {
    struct context *c = enter(handle);
    if (!c)
        return RKNN_ERR_CTX_INVALID;
    bool known = mask == RKNN_NPU_CORE_AUTO || mask == 1 || mask == 2 || mask == 3 || mask == 4 || mask == 7;
    bool granted = n_cores > 1 && known && mask < 1 << n_cores;
    if (!granted)
        complain("rknn_set_core_mask", n_cores == 1 ? "this SoC has one core" : "no such cores");
    pthread_mutex_lock(&lock);
    c->record->mask = granted ? (uint32_t)mask : RKNN_NPU_CORE_AUTO;
    pthread_mutex_unlock(&lock);
    return leave(c, granted ? RKNN_SUCC : RKNN_ERR_FAIL);
}

/* ---- queries ---- */

/* The NPU writes the channels of a 4-D output in groups of 16, an even number of groups: N, C / 16, H, W, 16. */
static void describe_native(struct rknn_tensor_attr *attr) {
    attr->n_dims = 5;
    attr->dims[1] = (attr->dims[1] + 31) / 32 * 2;
    attr->dims[4] = 16;
    attr->n_elems = attr->size = attr->size_with_stride = attr->dims[1] * attr->dims[2] * attr->dims[3] * 16;
    attr->fmt = RKNN_TENSOR_NC1HWC2;
}

static int describe(const struct context *c, bool output, bool native, struct rknn_tensor_attr *attr) {
    if (attr->index >= (output ? c->tensors.n_output : c->tensors.n_input))
        return RKNN_ERR_PARAM_INVALID;
    const struct tensor *t = output ? output_of(c, attr->index) : input_of(c);
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
        attr->size_with_stride = (t->dims[1] + 15) / 16 * 16 * t->dims[2] * ((t->dims[3] + 15) / 16 * 16);
    if (native && output && t->n_dims == 4)
        describe_native(attr);
    return RKNN_SUCC;
}

static int answer(const struct context *c, int32_t command, void *info, uint32_t size) {
    switch (command) {
    case RKNN_QUERY_IN_OUT_NUM:
        if (size != sizeof(struct rknn_input_output_num))
            return RKNN_ERR_PARAM_INVALID;
        *(struct rknn_input_output_num *)info = (struct rknn_input_output_num){c->tensors.n_input, c->tensors.n_output};
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
        uint32_t in_out = 0; /* the size of the file is that of the weights; inner layers need no memory */
        for (uint32_t i = 0; i < c->tensors.n_input + c->tensors.n_output; i++)
            in_out += elements(&c->tensors.tensors[i]);
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
    uint32_t size = elements(input_of(c));
    if (input->index >= c->tensors.n_input || input->type < RKNN_TENSOR_FLOAT32 || input->type > RKNN_TENSOR_UINT8)
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
    *(uint32_t *)c->input = input->pass_through ? RKNN_TENSOR_UINT8 : (uint32_t)input->type;
    memcpy(c->input + sizeof(uint32_t), input->buf, size);
    c->input_size = size;
    return RKNN_SUCC;
}

int rknn_inputs_set(rknn_context handle, uint32_t n_inputs, struct rknn_input *inputs) {
    struct context *c = enter(handle);
    if (!c)
        return RKNN_ERR_CTX_INVALID;
    int code = n_inputs > c->tensors.n_input ? RKNN_ERR_PARAM_INVALID : RKNN_SUCC;
    for (uint32_t i = 0; i < n_inputs && code == RKNN_SUCC; i++)
        code = set_input(c, &inputs[i]);
    if (code == RKNN_SUCC)
        set_busy(c, true);
    return leave(c, code);
}

static bool infer(void *context) {
    struct context *c = context;
    pthread_mutex_lock(&c->exchange);
    bool ok = link_compute(c->link, c->input, (uint32_t)sizeof(uint32_t) + c->input_size, &c->tensors, c->output);
    pthread_mutex_unlock(&c->exchange);
    return ok;
}

int rknn_run(rknn_context handle, void *extend) {
    (void)extend;
    struct context *c = enter(handle);
    if (!c)
        return RKNN_ERR_CTX_INVALID;
    struct piece all = {.mask = c->record->mask, .begins_a_run = true, .patience_ms = 6000, .compute = infer, .data = c};
    bool ok = run_on_cores(c->record, &all);
    c->last_us = all.us;
    if (!ok) {
        complain("rknn_run", "failed to submit!");
        set_busy(c, false);
    }
    return leave(c, ok ? RKNN_SUCC : RKNN_ERR_FAIL);
}

int rknn_wait(rknn_context handle, void *extend) { /* rknn_run has already waited */
    (void)extend;
    struct context *c = enter(handle);
    return c ? leave(c, RKNN_ERR_FAIL) : RKNN_ERR_CTX_INVALID;
}

/* Dequantise. The vendor's library rounds once if it also converts NC1HWC2 to NCHW. */
static void dequantise(const struct tensor *t, const int8_t *stored, uint32_t n, float *to) {
    float scale = t->scale, offset = (float)t->zp * t->scale;
    if (t->n_dims == 4)
        for (uint32_t i = 0; i < n; i++)
            to[i] = fmaf((float)stored[i], scale, -offset);
    else
        for (uint32_t i = 0; i < n; i++)
            to[i] = (float)(stored[i] - t->zp) * scale;
}

/* Writes an output into the caller's buffer, or into a new one that rknn_outputs_release frees. */
static void get_output(const struct context *c, struct rknn_output *output) {
    if (output->index >= c->tensors.n_output)
        return;
    const struct tensor *t = output_of(c, output->index);
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
    dequantise(t, stored, n, output->buf);
}

int rknn_outputs_get(rknn_context handle, uint32_t n_outputs, struct rknn_output *outputs, void *extend) {
    (void)extend;
    struct context *c = enter(handle);
    if (!c)
        return RKNN_ERR_CTX_INVALID;
    if (n_outputs > c->tensors.n_output) {
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
        if (!outputs[i].is_prealloc && outputs[i].index < c->tensors.n_output)
            free(outputs[i].buf);
    set_busy(c, false);
    return leave(c, RKNN_SUCC);
}
