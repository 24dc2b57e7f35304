/* A V4L2 camera for a process that preloads this library: /dev/video42 gives the frame in the file
   $CAMERA_FRAME again and again, in $CAMERA_FORMAT (such as NV12), 1280 x 720 pixels, 30 FPS.

       gcc -shared -fPIC -o camera.so camera.c -ldl
       LD_PRELOAD=./camera.so python main.py /dev/video42 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUFFERS 4

static int camera = -1, next, length, used;

static int opened(void) {
    int file = open(getenv("CAMERA_FRAME"), O_RDONLY);
    struct stat status;
    fstat(file, &status);
    used = status.st_size;
    length = (used + 4095) / 4096 * 4096 + 65536;
    camera = memfd_create("camera", 0); /* its buffers: select() and mmap() need no help */
    if (ftruncate(camera, BUFFERS * (off_t)length))
        return -1;
    char *memory = mmap(0, BUFFERS * (size_t)length, PROT_WRITE, MAP_SHARED, camera, 0);
    for (int n = 0; n < BUFFERS; n++)
        if (pread(file, memory + n * (size_t)length, used, 0) != used)
            return -1;
    munmap(memory, BUFFERS * (size_t)length);
    close(file);
    return camera;
}

#define OPEN(name)                                                                      \
    int name(const char *path, int flags, ...) {                                        \
        va_list more;                                                                   \
        va_start(more, flags);                                                          \
        int mode = va_arg(more, int);                                                   \
        va_end(more);                                                                   \
        int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, #name);                  \
        return strcmp(path, "/dev/video42") ? real(path, flags, mode) : opened();       \
    }
OPEN(open)
OPEN(open64)

static void describe(struct v4l2_pix_format *pix) {
    memcpy(&pix->pixelformat, getenv("CAMERA_FORMAT"), 4);
    pix->width = 1280;
    pix->height = 720;
    pix->field = V4L2_FIELD_NONE;
    pix->bytesperline = pix->pixelformat == V4L2_PIX_FMT_YUYV ? 2 * pix->width
        : pix->pixelformat == V4L2_PIX_FMT_NV12 ? pix->width : 0;
    pix->sizeimage = length;
}

int ioctl(int fd, unsigned long request, ...) {
    va_list more;
    va_start(more, request);
    void *data = va_arg(more, void *);
    va_end(more);
    if (fd != camera || fd < 0) {
        int (*real)(int, unsigned long, ...) = dlsym(RTLD_NEXT, "ioctl");
        return real(fd, request, data);
    }
    struct v4l2_buffer *buffer = data;
    switch ((unsigned)request) {
    case VIDIOC_QUERYCAP:
        ((struct v4l2_capability *)data)->capabilities =
            V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING;
        return 0;
    case VIDIOC_G_FMT:
    case VIDIOC_S_FMT:
    case VIDIOC_TRY_FMT:
        describe(&((struct v4l2_format *)data)->fmt.pix);
        return 0;
    case VIDIOC_G_PARM:
    case VIDIOC_S_PARM:
        ((struct v4l2_streamparm *)data)->parm.capture.timeperframe = (struct v4l2_fract){1, 30};
        return 0;
    case VIDIOC_REQBUFS:
        ((struct v4l2_requestbuffers *)data)->count = BUFFERS;
        return 0;
    case VIDIOC_DQBUF:
        usleep(33333);
        buffer->index = next++ % BUFFERS;
        /* fall through */
    case VIDIOC_QUERYBUF:
        buffer->length = length;
        buffer->bytesused = used;
        buffer->m.offset = buffer->index * length;
        return 0;
    case VIDIOC_G_INPUT:
        *(int *)data = 0;
        return 0;
    case VIDIOC_QBUF:
    case VIDIOC_STREAMON:
    case VIDIOC_STREAMOFF:
    case VIDIOC_S_INPUT:
        return 0;
    }
    errno = EINVAL;
    return -1;
}
