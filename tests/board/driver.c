/* Replaces the RKNPU kernel driver 0.9.8: preloaded into every program of the box with --library real, it answers the
 * DRM and RKNPU ioctls that the vendor's librknnrt.so sends to /dev/dri/card1.
 *
 * Environment: as in device.c, and BOARD_MEMORY, the bytes of NPU memory. BOARD_FAIL_INIT is ignored.
 */
#define _GNU_SOURCE
#include "driver.h"

#include <dlfcn.h>
#include <drm/drm.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define DEVICE "/dev/dri/card1"
#define EXPORTED __attribute__((visibility("default")))

enum { MAX_MEMORY = 8192, PAGE = 4096, DRIVER_VERSION = 908, RK3588 = 0x46495245, TASKS_FLAG = 8 /* the kernel reads this memory itself */ };
static const uint64_t COOKIE = 0xffffff8000000000, FIRST_ADDRESS = 0x10000000, LAST_ADDRESS = 0xf0000000;

/* Numbers of the RKNPU's own ioctls and of ACTION's requests. */
enum { ACTION, SUBMIT, CREATE, MAP, DESTROY, SYNC };
enum { GET_HARDWARE = 0, GET_DRIVER = 1, GET_IOMMU = 18, SET_NICE = 19, POWER_ON = 20, POWER_OFF = 21 };

struct npu_action {
    uint32_t what, value;
};
struct npu_create {
    uint32_t handle, flags;
    uint64_t size, cookie, address, sram_size;
};
struct npu_map {
    uint32_t handle, reserved;
    uint64_t offset;
};
struct npu_destroy {
    uint32_t handle, reserved;
    uint64_t cookie;
};
struct npu_sync {
    uint32_t flags, reserved;
    uint64_t cookie, offset, size;
};

_Static_assert(sizeof(struct npu_create) == 40 && sizeof(struct npu_sync) == 32, "layout of the driver's structures");

static struct memory memories[MAX_MEMORY]; /* by handle; 0 is not a handle */
static uint32_t n_memories = 1;
static uint64_t next_address = FIRST_ADDRESS;
static long serial;
static int device = -1;

/* ---- memory ---- */

struct memory *memory_at(uint64_t address) {
    for (uint32_t i = 1; i < n_memories; i++)
        if (memories[i].fd >= 0 && address >= memories[i].address && address < memories[i].address + memories[i].size)
            return &memories[i];
    return NULL;
}

static struct memory *memory_of(uint64_t handle) {
    return handle >= 1 && handle < n_memories && memories[handle].fd >= 0 ? &memories[handle] : NULL;
}

struct memory *memory_of_cookie(uint64_t cookie) {
    return memory_of((cookie - COOKIE) / PAGE);
}

/* Each piece gets the address after the last one; after 32 bits the addresses start again. */
static uint64_t free_address(uint64_t size) {
    for (uint32_t i = 0; i < n_memories; i++) {
        if (next_address + size > LAST_ADDRESS)
            next_address = FIRST_ADDRESS;
        struct memory *other = NULL;
        for (uint64_t at = next_address; at < next_address + size && !other; at += PAGE)
            other = memory_at(at);
        if (!other)
            break;
        next_address = other->address + (other->size + PAGE - 1) / PAGE * PAGE;
    }
    uint64_t address = next_address;
    next_address += (size + PAGE - 1) / PAGE * PAGE;
    return address;
}

static int create(struct npu_create *request) {
    const char *limit = getenv("BOARD_MEMORY");
    uint32_t handle = 1;
    while (handle < n_memories && memories[handle].fd >= 0)
        handle++;
    if (handle == MAX_MEMORY || (limit && *limit && report.memory + (long)request->size > atol(limit))) {
        errno = ENOMEM;
        return -1;
    }
    uint64_t address = free_address(request->size);
    int fd = memfd_create("npu", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)request->size))
        return -1;
    struct memory *m = &memories[handle];
    *m = (struct memory){request->size, address, mmap(NULL, request->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), fd, ++serial};
    if (handle == n_memories)
        n_memories++;
    report.memory += (long)m->size;
    if (report.memory > report.memory_most)
        report.memory_most = report.memory;
    request->handle = handle;
    request->cookie = COOKIE + (uint64_t)handle * PAGE;
    request->address = address;
    request->sram_size = 0;
    if (request->flags & TASKS_FLAG)
        context_opened(m);
    return 0;
}

static int destroy(uint32_t handle) {
    struct memory *m = memory_of(handle);
    if (!m) {
        errno = EINVAL;
        return -1;
    }
    memory_is_freed(m);
    munmap(m->at, m->size);
    close(m->fd);
    m->fd = -1;
    report.memory -= (long)m->size;
    return 0;
}

/* ---- ioctls ---- */

static int action(struct npu_action *request) {
    switch (request->what) {
    case GET_HARDWARE:
        request->value = RK3588;
        return 0;
    case GET_DRIVER:
        request->value = DRIVER_VERSION;
        return 0;
    case GET_IOMMU:
        request->value = 1;
        return 0;
    case SET_NICE:
    case POWER_ON:
        return 0;
    case POWER_OFF:
        return 0;
    default:
        errno = EINVAL;
        return -1;
    }
}

static void put_text(char *to, size_t *length, const char *text) {
    if (to)
        memcpy(to, text, *length < strlen(text) ? *length : strlen(text));
    *length = strlen(text);
}

static int refuse(void) {
    errno = EINVAL;
    return -1;
}

/* DRM's own requests. */
static int drm(unsigned int number, void *data) {
    switch (number) {
    case _IOC_NR(DRM_IOCTL_VERSION): {
        struct drm_version *version = data;
        version->version_major = 0, version->version_minor = 9, version->version_patchlevel = 8;
        put_text(version->name, &version->name_len, "rknpu");
        put_text(version->date, &version->date_len, "20240828");
        put_text(version->desc, &version->desc_len, "RKNPU driver");
        return 0;
    }
    case _IOC_NR(DRM_IOCTL_GET_UNIQUE):
        ((struct drm_unique *)data)->unique_len = 0;
        return 0;
    case _IOC_NR(DRM_IOCTL_SET_VERSION):
        return 0;
    case _IOC_NR(DRM_IOCTL_PRIME_HANDLE_TO_FD): {
        struct drm_prime_handle *prime = data;
        struct memory *m = memory_of(prime->handle);
        prime->fd = m ? fcntl(m->fd, F_DUPFD_CLOEXEC, 0) : -1;
        return prime->fd >= 0 ? 0 : refuse();
    }
    case _IOC_NR(DRM_IOCTL_GEM_CLOSE):
        return destroy(((struct drm_gem_close *)data)->handle);
    default: /* includes GEM_FLINK, as in most kernels */
        return refuse();
    }
}

static int answer(unsigned long request, void *data) {
    unsigned int number = _IOC_NR(request);
    if (number == DRM_COMMAND_BASE + SUBMIT) /* submit() takes the lock itself */
        return submit(data);
    pthread_mutex_lock(&lock);
    int code;
    long destroyed = report.destroyed;
    switch ((int)number - DRM_COMMAND_BASE) {
    case ACTION:
        code = action(data);
        break;
    case CREATE:
        code = create(data);
        break;
    case MAP:
        ((struct npu_map *)data)->offset = (uint64_t)((struct npu_map *)data)->handle << 32;
        code = memory_of(((struct npu_map *)data)->handle) ? 0 : refuse();
        break;
    case DESTROY:
        code = destroy(((struct npu_destroy *)data)->handle);
        break;
    case SYNC: /* both sides share the memory, so there is nothing to synchronise */
        code = 0;
        break;
    default:
        code = drm(number, data);
    }
    destroyed = report.destroyed - destroyed;
    pthread_mutex_unlock(&lock);
    if (destroyed) /* a process that ends with _exit() runs no destructor */
        write_report();
    return code;
}

/* ---- replacements of libc functions ---- */

static void *libc(const char *name) {
    return dlsym(RTLD_NEXT, name);
}

EXPORTED int open(const char *path, int flags, ...) {
    int (*next)(const char *, int, ...) = (int (*)(const char *, int, ...))libc("open");
    va_list rest;
    va_start(rest, flags);
    int fd = next(path, flags, va_arg(rest, int));
    va_end(rest);
    if (fd >= 0 && !strcmp(path, DEVICE))
        device = fd;
    return fd;
}

EXPORTED int close(int fd) {
    if (fd >= 0 && fd == device)
        device = -1;
    return ((int (*)(int))libc("close"))(fd);
}

EXPORTED int ioctl(int fd, unsigned long request, ...) {
    va_list rest;
    va_start(rest, request);
    void *data = va_arg(rest, void *);
    va_end(rest);
    if (fd >= 0 && fd == device)
        return answer(request, data);
    return ((int (*)(int, unsigned long, ...))libc("ioctl"))(fd, request, data);
}

EXPORTED void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    if (fd >= 0 && fd == device) {
        pthread_mutex_lock(&lock);
        struct memory *m = memory_of((uint64_t)offset >> 32);
        fd = m ? m->fd : -1;
        offset = 0;
        pthread_mutex_unlock(&lock);
    }
    return ((void *(*)(void *, size_t, int, int, int, off_t))libc("mmap"))(at, size, protection, flags, fd, offset);
}

EXPORTED void *mmap64(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    return mmap(at, size, protection, flags, fd, offset);
}
