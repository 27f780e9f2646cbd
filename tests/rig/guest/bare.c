/*
 * The bare ioctls: the yardstick that the fence's speed is told against. Not a line of the product is in it, no plan, no proof, and no
 * buffer larger than the kernel has to copy. Also what makes a thousand volumes in a second, which lvcreate cannot: device mapper devices
 * with LVM's UUIDs, which is all that the product knows a volume group by.
 *
 *   bare make PREFIX VG-UUID COUNT MAJOR:MINOR|zero    PREFIX0, PREFIX1...: 1 MiB each, all on the same sectors of that device
 *   bare swap PREFIX THREADS one|two                   the error target under each: by one ioctl after the load, or by suspend and resume
 *   bare remove PREFIX
 *   bare load PREFIX THREADS                           direct writes to each in turn until it fails or /run/bare.stop is there
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#define SECTORS 2048
#define FIRST_SECTOR 1048576
#define MOST 16384
/* Whoever listens to udev shall not scan these. */
#define UDEV_NOTHING 0x000f0000
/* What the product tells udev at a swap. */
#define UDEV_KEEP 0x01400000

struct call {
    struct dm_ioctl head;
    struct dm_target_spec target;
    char params[64];
};

static int control, count, threads;
static int minors[MOST];
static const char *prefix, *vg, *below;
static int two;
static atomic_int next_device, failures, ready;
static _Atomic long long spent[3];

static long long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int call(unsigned long command, struct call *c, int device, unsigned flags, unsigned event)
{
    long long began = now();
    c->head.version[0] = 4;
    c->head.data_size = command == DM_TABLE_LOAD ? sizeof *c : sizeof c->head;
    c->head.data_start = sizeof c->head;
    c->head.flags = flags;
    c->head.event_nr = event;
    snprintf(c->head.name, sizeof c->head.name, "%s%d", prefix, device);
    if (ioctl(control, command, c)) {
        fprintf(stderr, "bare: %s: ioctl %lx: %s\n", c->head.name, command, strerror(errno));
        failures++;
    }
    return now() - began;
}

static void load(int device, const char *kind, const char *params)
{
    struct call c = { .head.target_count = 1 };
    c.target.length = SECTORS;
    c.target.next = sizeof c.target + sizeof c.params;
    strcpy(c.target.target_type, kind);
    strcpy(c.params, params);
    spent[0] += call(DM_TABLE_LOAD, &c, device, 0, 0);
}

static void resume(int slot, int device, unsigned flags, unsigned event)
{
    struct call c = { 0 };
    spent[slot] += call(DM_DEV_SUSPEND, &c, device, flags, event);
}

static void make(int device)
{
    struct call c = { 0 };
    char params[64];
    snprintf(c.head.uuid, sizeof c.head.uuid, "LVM-%s%032d", vg, device);
    call(DM_DEV_CREATE, &c, device, 0, UDEV_NOTHING);
    snprintf(params, sizeof params, "%s %d", below, FIRST_SECTOR);
    if (strcmp(below, "zero"))
        load(device, "linear", params);
    else
        load(device, "zero", "");
    resume(2, device, 0, UDEV_NOTHING);
}

static void swap(int device)
{
    unsigned flags = DM_NOFLUSH_FLAG | DM_SKIP_LOCKFS_FLAG;
    load(device, "error", "");
    if (two)
        resume(1, device, flags | DM_SUSPEND_FLAG, 0);
    resume(2, device, flags, UDEV_KEEP);
}

static void remove_one(int device)
{
    struct call c = { 0 };
    call(DM_DEV_REMOVE, &c, device, 0, UDEV_NOTHING);
}

static void *each(void *work)
{
    for (int device; (device = next_device++) < count;)
        ((void (*)(int))work)(device);
    return NULL;
}

static void *writer(void *argument)
{
    int first = (int)(long)argument, open_files = 0;
    int *files = calloc(count, sizeof *files);
    char *block = aligned_alloc(4096, 4096), path[32];
    memset(block, 7, 4096);
    for (int i = first; i < count; i += threads) {
        snprintf(path, sizeof path, "/dev/dm-%d", minors[i]);
        files[i] = open(path, O_WRONLY | O_DIRECT);
        if (files[i] < 0) {
            perror(path);
            exit(1);
        }
        open_files++;
    }
    if (++ready == threads)
        close(creat("/run/bare.ready", 0644));
    while (open_files && access("/run/bare.stop", F_OK))
        for (int i = first; i < count; i += threads)
            if (files[i] >= 0 && pwrite(files[i], block, 4096, 4096L * (i % 256)) < 0) {
                close(files[i]);
                files[i] = -1;
                open_files--;
            }
    return NULL;
}

/* How many devices have the prefix; they are numbered from 0. */
static int list(void)
{
    size_t size = 4 << 20, skip = strlen(prefix);
    struct dm_ioctl *c = calloc(1, size);
    int found = 0;
    c->version[0] = 4;
    c->data_size = size;
    c->data_start = sizeof *c;
    if (ioctl(control, DM_LIST_DEVICES, c)) {
        perror("bare: list");
        exit(1);
    }
    struct dm_name_list *n = (void *)((char *)c + c->data_start);
    while (n->dev) {
        if (!strncmp(n->name, prefix, skip) && atoi(n->name + skip) < MOST) {
            minors[atoi(n->name + skip)] = minor(n->dev);
            found++;
        }
        if (!n->next)
            break;
        n = (void *)((char *)n + n->next);
    }
    free(c);
    return found;
}

static void run(void *(*body)(void *), void *argument)
{
    pthread_t thread[128];
    for (long i = 0; i < threads; i++)
        pthread_create(&thread[i], NULL, body, argument ? argument : (void *)i);
    for (int i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
}

int main(int argc, char **argv)
{
    const char *what = argc > 2 ? argv[1] : "";
    prefix = argc > 2 ? argv[2] : "";
    control = open("/dev/mapper/control", O_RDWR);
    if (control < 0) {
        perror("/dev/mapper/control");
        return 1;
    }
    threads = 16;
    count = list();
    long long began = now();
    if (!strcmp(what, "make") && argc == 6) {
        vg = argv[3];
        count = atoi(argv[4]);
        below = argv[5];
        run(each, make);
    } else if (!strcmp(what, "swap") && argc == 5) {
        threads = atoi(argv[3]);
        two = !strcmp(argv[4], "two");
        run(each, swap);
    } else if (!strcmp(what, "remove")) {
        run(each, remove_one);
    } else if (!strcmp(what, "load") && argc == 4) {
        threads = atoi(argv[3]);
        run(writer, NULL);
        return 0;
    } else {
        fprintf(stderr, "usage: see the source\n");
        return 2;
    }
    printf("{\"devices\":%d,\"ms\":%.3f,\"load_ms\":%.3f,\"suspend_ms\":%.3f,\"resume_ms\":%.3f}\n", count, (now() - began) / 1e6, spent[0] / 1e6,
        spent[1] / 1e6, spent[2] / 1e6);
    return failures > 0;
}
