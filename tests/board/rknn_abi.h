/* The part of librknnrt.so's binary interface (RKNPU2) that rknn-toolkit-lite2 and a program over the library use: structures, codes, functions.
 * 64-bit Arm layout; the wheel's own ctypes structures have the same offsets. */
#pragma once

#include <stdint.h>

enum { RKNN_MAX_DIMS = 16, RKNN_MAX_NAME = 256, RKNN_MAX_RANGES = 512 };

typedef uint64_t rknn_context; /* a handle */

enum {
    RKNN_SUCC = 0,
    RKNN_ERR_FAIL = -1,
    RKNN_ERR_MALLOC_FAIL = -4,
    RKNN_ERR_PARAM_INVALID = -5,
    RKNN_ERR_MODEL_INVALID = -6,
    RKNN_ERR_CTX_INVALID = -7,
    RKNN_ERR_INPUT_INVALID = -8,
    RKNN_ERR_OUTPUT_INVALID = -9,
};

enum {
    RKNN_QUERY_IN_OUT_NUM = 0,
    RKNN_QUERY_INPUT_ATTR = 1,
    RKNN_QUERY_OUTPUT_ATTR = 2,
    RKNN_QUERY_PERF_RUN = 4,
    RKNN_QUERY_SDK_VERSION = 5,
    RKNN_QUERY_MEM_SIZE = 6,
    RKNN_QUERY_NATIVE_INPUT_ATTR = 8,
    RKNN_QUERY_NATIVE_OUTPUT_ATTR = 9,
    RKNN_QUERY_INPUT_DYNAMIC_RANGE = 13,
    RKNN_QUERY_CURRENT_INPUT_ATTR = 14,
    RKNN_QUERY_CURRENT_OUTPUT_ATTR = 15,
};

enum { RKNN_NPU_CORE_AUTO = 0 }; /* the other masks have bit n set for core n */

enum { RKNN_TENSOR_FLOAT32 = 0, RKNN_TENSOR_FLOAT16 = 1, RKNN_TENSOR_INT8 = 2, RKNN_TENSOR_UINT8 = 3 };
enum { RKNN_TENSOR_NCHW = 0, RKNN_TENSOR_NHWC = 1, RKNN_TENSOR_NC1HWC2 = 2, RKNN_TENSOR_UNDEFINED = 3 };
enum { RKNN_TENSOR_QNT_AFFINE_ASYMMETRIC = 2 };

struct rknn_input_output_num {
    uint32_t n_input, n_output;
};

struct rknn_tensor_attr {
    uint32_t index; /* set by the caller */
    uint32_t n_dims, dims[RKNN_MAX_DIMS];
    char name[RKNN_MAX_NAME];
    uint32_t n_elems, size; /* size in bytes */
    int32_t fmt, type, qnt_type;
    int8_t fl;
    int32_t zp; /* value = (stored - zp) * scale */
    float scale;
    uint32_t w_stride, size_with_stride;
    uint8_t pass_through;
    uint32_t h_stride;
};

struct rknn_sdk_version {
    char api_version[256], drv_version[256];
};

struct rknn_perf_run {
    int64_t run_duration; /* microseconds */
};

struct rknn_mem_size { /* bytes */
    uint32_t total_weight_size, total_internal_size;
    uint64_t total_dma_allocated_size;
    uint32_t total_sram_size, free_sram_size, reserved[10];
};

struct rknn_input {
    uint32_t index;
    void *buf;
    uint32_t size; /* bytes */
    uint8_t pass_through;
    int32_t type, fmt;
};

struct rknn_output {
    uint8_t want_float, is_prealloc; /* is_prealloc: buf and size are the caller's */
    uint32_t index;
    void *buf;
    uint32_t size; /* bytes */
};

_Static_assert(sizeof(struct rknn_tensor_attr) == 376, "layout of rknn_tensor_attr");
_Static_assert(sizeof(struct rknn_mem_size) == 64, "layout of rknn_mem_size");
_Static_assert(sizeof(struct rknn_input) == 32, "layout of rknn_input");
_Static_assert(sizeof(struct rknn_output) == 24, "layout of rknn_output");

#define RKNN_API __attribute__((visibility("default")))

/* `extend` arguments may be NULL; nothing in them is used here. */
RKNN_API int rknn_init(rknn_context *context, void *model, uint32_t size, uint32_t flag, void *extend);
RKNN_API int rknn_init2(rknn_context *context, void *model, uint32_t size, uint32_t flag, void *extend);
RKNN_API int rknn_dup_context(rknn_context *context, rknn_context *copy);
RKNN_API int rknn_destroy(rknn_context context);
RKNN_API int rknn_query(rknn_context context, int32_t command, void *info, uint32_t size);
RKNN_API int rknn_set_core_mask(rknn_context context, int32_t mask);
RKNN_API int rknn_set_input_shapes(rknn_context context, uint32_t n_inputs, struct rknn_tensor_attr *attr);
RKNN_API int rknn_inputs_set(rknn_context context, uint32_t n_inputs, struct rknn_input *inputs);
RKNN_API int rknn_run(rknn_context context, void *extend);
RKNN_API int rknn_wait(rknn_context context, void *extend);
RKNN_API int rknn_outputs_get(rknn_context context, uint32_t n_outputs, struct rknn_output *outputs, void *extend);
RKNN_API int rknn_outputs_release(rknn_context context, uint32_t n_outputs, struct rknn_output *outputs);
