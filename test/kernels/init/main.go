// Command init is the first process of a guest of the kernel matrix: it mounts
// what a machine has, loads the modules, runs the test binaries one after the
// other with their output on the second serial line, and powers off.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Job is one test binary; /jobs.json holds a list of them.
type Job struct {
	Package string   `json:"package"`
	Dir     string   `json:"dir"`
	Args    []string `json:"args"` // the program first
}

func main() {
	if os.Getpid() == 1 {
		reap()
	}
	results, err := os.OpenFile("/dev/ttyS1", os.O_WRONLY, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, "init: results go nowhere:", err)
		return
	}
	if err := run(results); err != nil {
		fmt.Fprintf(results, "\nTAPGATE-ERROR %v\n", err)
	}
	unix.IoctlSetInt(int(results.Fd()), unix.TCSBRK, 1) // wait until all is on the line
}

// reap mounts /dev, starts this program again as an ordinary process, and
// collects what dies, as tests expect of the first process.
func reap() {
	if err := mounts(); err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
	}
	p, err := os.StartProcess("/proc/self/exe", []string{"init"}, &os.ProcAttr{
		Env: environment(), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
	}
	for p != nil {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if pid == p.Pid && status != 0 || errors.Is(err, syscall.ECHILD) {
			fmt.Fprintf(os.Stderr, "init: the tests' process ended with status %#x, %v\n", int(status), err)
		}
		if pid == p.Pid || errors.Is(err, syscall.ECHILD) {
			break
		}
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// environment keeps what the kernel's command line gave: TAPGATE_KERNEL, CI.
func environment() []string {
	return append(os.Environ(), "PATH=/bin", "TMPDIR=/tmp", "TAPGATE_BIN=/bin/tapgate")
}

func mounts() error {
	for _, m := range []struct{ kind, at string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"devpts", "/dev/pts"}, {"tmpfs", "/tmp"},
		{"tmpfs", "/run"}, {"bpf", "/sys/fs/bpf"}, {"cgroup2", "/sys/fs/cgroup"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	for name, fd := range map[string]string{"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"} {
		if err := os.Symlink("/proc/self/fd"+fd, "/dev/"+name); err != nil {
			return err
		}
	}
	return nil
}

func run(results io.Writer) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	fmt.Fprintf(results, "TAPGATE-RELEASE %s\n", unix.ByteSliceToString(u.Release[:]))
	// Without this every new namespace gets gre0, erspan0 and the like.
	if err := os.WriteFile("/proc/sys/net/core/fb_tunnels_only_for_init_net", []byte("1"), 0); err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := setUp("lo"); err != nil {
		return err
	}
	text, err := os.ReadFile("/jobs.json")
	if err != nil {
		return err
	}
	var jobs []Job
	if err := json.Unmarshal(text, &jobs); err != nil {
		return err
	}
	for _, j := range jobs {
		fmt.Fprintf(results, "\nTAPGATE-START %s\n", j.Package)
		cmd := exec.Command(j.Args[0], j.Args[1:]...)
		cmd.Dir, cmd.Stdout, cmd.Stderr = j.Dir, results, results
		err := cmd.Run()
		if cmd.ProcessState == nil {
			return err
		}
		fmt.Fprintf(results, "\nTAPGATE-EXIT %d\n", cmd.ProcessState.ExitCode())
	}
	fmt.Fprintln(results, "TAPGATE-DONE")
	return nil
}

// loadModules loads what /modules/order names, which has dependencies first.
func loadModules() error {
	order, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for name := range strings.Lines(string(order)) {
		f, err := os.Open(filepath.Join("/modules", strings.TrimSpace(name)))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load module %s: %w", strings.TrimSpace(name), err)
		}
	}
	return nil
}

func setUp(device string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(device)
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}
