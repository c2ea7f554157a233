package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"tapgate/test/kernels"
)

var errHung = errors.New("the guest hung")

// boot starts the kernel in a virtual machine in software (KVM may be absent
// or, as in nested machines, hang) and returns what came out of its lines: the
// first is the kernel's console, the second belongs to the tests alone, so
// that kernel messages never stand in the middle of a test's output.
func boot(ctx context.Context, folder string, k kernels.Kernel, img *image, initramfs string, limit time.Duration) (console, results []byte, err error) {
	consolePath, resultsPath := filepath.Join(folder, "console.log"), filepath.Join(folder, "tests.log")
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	options := "console=ttyS0 loglevel=5 panic=-1 oops=panic mitigations=off TAPGATE_KERNEL=" + k.Name
	if os.Getenv("CI") == "true" {
		options += " CI=true"
	}
	// Without cx16: QEMU 7.2 leaves garbage in EFLAGS after a cmpxchg16b that is
	// not locked, which the allocator of 6.12 uses: double faults here and there.
	// One thread for both CPUs: with one for each, QEMU 7.2 now and then runs the
	// int3 of a place that the kernel has just done with patching (static keys), and
	// the kernel dies of "Oops: int3" (Red Hat bug 2216496; seen with 7.3 in CI).
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg,thread=single", "-cpu", "qemu64,-cx16", "-smp", "2", "-m", "1G",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-serial", "file:"+consolePath, "-serial", "file:"+resultsPath,
		"-kernel", img.kernel, "-initrd", initramfs, "-append", options)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	_, err = output(cmd)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("%w: kernel %s did not end within %s", errHung, k.Name, limit)
	}
	console, errConsole := os.ReadFile(consolePath)
	results, errResults := os.ReadFile(resultsPath)
	return plain(console), plain(results), errors.Join(err, errConsole, errResults)
}

// plain takes out what a terminal line puts in: carriage returns.
func plain(b []byte) []byte { return bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n")) }

// direct runs the test binaries on this machine, and writes what a guest would.
func direct(ctx context.Context, k kernels.Kernel, binaries []binary, tapgate string) ([]byte, error) {
	release, err := kernels.Release()
	if err != nil {
		return nil, err
	}
	var log bytes.Buffer
	fmt.Fprintf(&log, "TAPGATE-RELEASE %s\n", release)
	for _, b := range binaries {
		args := b.args(b.path)
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Dir, cmd.Stdout, cmd.Stderr = b.folder, &log, &log
		cmd.Env = append(os.Environ(), "TAPGATE_KERNEL="+k.Name, "TAPGATE_BIN="+tapgate)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		fmt.Fprintf(&log, "\nTAPGATE-START %s\n", b.test.Package)
		err := cmd.Run()
		if cmd.ProcessState == nil {
			return nil, err
		}
		fmt.Fprintf(&log, "\nTAPGATE-EXIT %d\n", cmd.ProcessState.ExitCode())
	}
	log.WriteString("TAPGATE-DONE\n")
	return log.Bytes(), ctx.Err()
}

var trouble = regexp.MustCompile(`(?m)^\[[ .0-9]+\] .*(Kernel panic|BUG:|Oops|WARNING: |general protection|detected stall|kmemleak|refcount_t).*$`)

// complaints are the lines of a console that no test run may cause.
func complaints(console []byte) []string {
	var found []string
	for _, line := range trouble.FindAll(console, 10) {
		found = append(found, strings.TrimSpace(string(line)))
	}
	return found
}
