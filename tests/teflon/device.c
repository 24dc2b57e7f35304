/* Replaces the kernel's rocket driver for Mesa: /dev/accel/accel0, whose buffers are plain memory. Nothing is computed.
 * Preloaded by box.sh. The numbers are those of the kernel's drm.h and rocket_accel.h. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { VERSION = 0x00, GEM_CLOSE = 0x09, CREATE_BO = 0x40, SUBMIT = 0x41, PREP_BO = 0x42, FINI_BO = 0x43 };

struct version {
    int major, minor, patch;
    size_t name_length;
    char *name;
    size_t date_length;
    char *date;
    size_t description_length;
    char *description;
};

struct create_bo {
    uint32_t size, handle;
    uint64_t dma_address, offset;
};

struct submit {
    uint64_t jobs;
    uint32_t job_count, job_size;
};

static int memory = -1; /* all buffers, one after the other, mapped like the device's */
static uint64_t used;
static uint32_t handles;

static int device(const char *path)
{
    if (strcmp(path, "/dev/accel/accel0"))
        return -1;
    if (memory < 0)
        memory = memfd_create("accel0", 0);
    return dup(memory);
}

#define OPEN(name)                                                             \
    int name(const char *path, int flags, ...)                                 \
    {                                                                          \
        static int (*next)(const char *, int, ...);                            \
        va_list rest;                                                          \
        va_start(rest, flags);                                                 \
        int mode = va_arg(rest, int);                                          \
        va_end(rest);                                                          \
        int ours = device(path);                                               \
        if (ours >= 0)                                                         \
            return ours;                                                       \
        if (!next)                                                             \
            next = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name);   \
        return next(path, flags, mode);                                        \
    }

OPEN(open)
OPEN(open64)

int ioctl(int file, unsigned long request, ...)
{
    static int (*next)(int, unsigned long, ...);
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if ((request >> 8 & 0xff) != 'd') {
        if (!next)
            next = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
        return next(file, request, argument);
    }
    switch (request & 0xff) {
    case VERSION: {
        struct version *version = argument;
        if (version->name)
            memcpy(version->name, "rocket", version->name_length < 6 ? version->name_length : 6);
        *version = (struct version){ .major = 1, .name = version->name, .name_length = 6, .date = version->date,
                                     .description = version->description };
        return 0;
    }
    case CREATE_BO: {
        struct create_bo *bo = argument;
        bo->offset = used;
        bo->dma_address = 0x100000 + used;
        bo->handle = ++handles;
        used += (bo->size + 0xffffULL) & ~0xffffULL;
        return ftruncate(memory, (off_t)used);
    }
    case SUBMIT:
        fprintf(stderr, "rocket: %u jobs\n", ((struct submit *)argument)->job_count);
        return 0;
    case PREP_BO:
    case FINI_BO:
    case GEM_CLOSE:
        return 0;
    }
    errno = EINVAL;
    return -1;
}
