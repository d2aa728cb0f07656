/* A plugin of qemu 7.2 (user mode, plugin API 1) that counts a guest's instructions and lets them be its clock.
 *
 * Each instruction is one microsecond, so onnxruntime's own profiler, whose unit that is, reports instructions. At each
 * reading of the clock a record is logged: all instructions so far, then those of each class. Counting is per block of
 * translated code and of one guest thread: two would race.
 *
 * Options: log=FILE.  table.h is written by kinds.py: CLASSES, RULES, and rules[] of {mask, value, class}, of which the
 * first that fits counts; the last fits all.
 *
 * No headers, so that neither a C library's nor qemu's are needed: what is used is declared here.
 */

typedef unsigned long u64;
typedef unsigned int u32;

struct rule {
    u32 mask, value, kind;
};
#include "table.h"

#define CLOCK_GETTIME 113          /* as aarch64 numbers system calls */
#define EPOCH 1700000000UL         /* seconds: where the guest's clock starts; a plausible date */
#define SECOND 1000000UL           /* instructions */
#define RECORD (1 + CLASSES)
#define RECORDS 4096               /* that are kept before they are written */
#define INLINE_ADD_U64 0

int open(const char *path, int flags, ...);
long write(int file, const void *data, u64 size);
int close(int file);
int strncmp(const char *left, const char *right, u64 size);

void qemu_plugin_register_vcpu_tb_trans_cb(u64 id, void (*call)(u64 id, void *block));
void qemu_plugin_register_vcpu_syscall_cb(u64 id, void *call);
void qemu_plugin_register_vcpu_syscall_ret_cb(u64 id, void *call);
void qemu_plugin_register_vcpu_tb_exec_inline(void *block, int operation, void *counter, u64 amount);
void qemu_plugin_register_atexit_cb(u64 id, void (*call)(u64 id, void *data), void *data);
u64 qemu_plugin_tb_n_insns(void *block);
void *qemu_plugin_tb_get_insn(void *block, u64 index);
const u32 *qemu_plugin_insn_data(void *instruction);

int qemu_plugin_version = 1;

static u64 counts[RECORD];
static u64 records[RECORDS * RECORD];
static u64 kept;
static u64 time_address;
static int log_file = -1;

static u32 class_of(u32 word)
{
    u32 i = 0;
    while ((word & rules[i].mask) != rules[i].value)
        i++;
    return rules[i].kind;
}

static void on_translation(u64 id, void *block)
{
    u64 found[CLASSES] = {0};
    u64 size = qemu_plugin_tb_n_insns(block), i;
    for (i = 0; i < size; i++)
        found[class_of(*qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)))]++;
    qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD_U64, &counts[0], size);
    for (i = 0; i < CLASSES; i++)
        if (found[i])
            qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD_U64, &counts[1 + i], found[i]);
}

static void flush(void)
{
    const char *data = (const char *)records;
    u64 size = kept * RECORD * sizeof(u64);
    while (size > 0) {
        long written = write(log_file, data, size);
        if (written <= 0)
            break;                 /* a full disk: the reader misses records and says so */
        data += written;
        size -= written;
    }
    kept = 0;
}

static void on_call(u64 id, u32 cpu, long number, u64 clock, u64 address, u64 c, u64 d, u64 e, u64 f, u64 g, u64 h)
{
    u64 i;
    time_address = number == CLOCK_GETTIME ? address : 0;
    if (!time_address || log_file < 0)
        return;
    for (i = 0; i < RECORD; i++)
        records[kept * RECORD + i] = counts[i];
    if (++kept == RECORDS)
        flush();
}

/* Guest addresses are the host's: a 64-bit guest is not moved. */
static void on_return(u64 id, u32 cpu, long number, long result)
{
    u64 *time = (u64 *)time_address;
    if (number != CLOCK_GETTIME || !time || result != 0)
        return;
    time[0] = EPOCH + counts[0] / SECOND;
    time[1] = counts[0] % SECOND * 1000;
}

static void on_exit(u64 id, void *data)
{
    if (log_file < 0)
        return;
    flush();
    close(log_file);
}

int qemu_plugin_install(u64 id, const void *info, int argc, char **argv)
{
    int i;
    for (i = 0; i < argc; i++)
        if (strncmp(argv[i], "log=", 4) == 0)
            log_file = open(argv[i] + 4, 01 | 0100 | 01000, 0600);      /* write only, create, truncate */
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_vcpu_syscall_cb(id, on_call);
    qemu_plugin_register_vcpu_syscall_ret_cb(id, on_return);
    qemu_plugin_register_atexit_cb(id, on_exit, 0);
    return 0;
}
