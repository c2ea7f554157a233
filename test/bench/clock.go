package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cpuClock adds up CPU time of threads, with the softirq work that runs in
// their context. That work is most of what is measured, and kernels with
// CONFIG_IRQ_TIME_ACCOUNTING leave it out of every other per-thread clock.
// Time that other processes take on a shared machine does not count.
type cpuClock struct {
	files []*os.File
}

// openClock counts the calling thread, what it starts from now on, the
// processes named, and the CPU's ksoftirqd, which takes over when softirqs pile up.
func openClock(cpu int, pids ...int) (*cpuClock, error) {
	c := &cpuClock{}
	pids = append([]int{0, ksoftirqd(cpu)}, pids...)
	for _, pid := range pids {
		if pid < 0 {
			continue
		}
		attr := unix.PerfEventAttr{
			Type:   unix.PERF_TYPE_SOFTWARE,
			Config: unix.PERF_COUNT_SW_TASK_CLOCK,
			Size:   uint32(unsafe.Sizeof(unix.PerfEventAttr{})),
			Bits:   unix.PerfBitInherit,
		}
		fd, err := unix.PerfEventOpen(&attr, pid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
		if err != nil {
			c.close()
			return nil, fmt.Errorf("CPU clock of process %d (perf_event_open, needs CAP_PERFMON): %w", pid, err)
		}
		c.files = append(c.files, os.NewFile(uintptr(fd), "cpu clock"))
	}
	return c, nil
}

// read returns ns since openClock.
func (c *cpuClock) read() (float64, error) {
	var sum uint64
	for _, f := range c.files {
		var buf [8]byte
		if _, err := f.Read(buf[:]); err != nil {
			return 0, fmt.Errorf("read CPU clock: %w", err)
		}
		sum += binary.NativeEndian.Uint64(buf[:])
	}
	return float64(sum), nil
}

func (c *cpuClock) close() {
	for _, f := range c.files {
		f.Close()
	}
}

// ksoftirqd is the process id of a CPU's softirq thread, or -1.
func ksoftirqd(cpu int) int {
	want := "ksoftirqd/" + strconv.Itoa(cpu)
	files, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, f := range files {
		name, err := os.ReadFile(f)
		if err == nil && strings.TrimSpace(string(name)) == want {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			return pid
		}
	}
	return -1
}
