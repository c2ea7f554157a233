package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// syscallInfo is struct ptrace_syscall_info of linux/ptrace.h at an entry.
type syscallInfo struct {
	op   uint8
	_    [3]uint8
	_    uint32
	_, _ uint64
	nr   uint64
	args [6]uint64
	_    [32]byte
}

const (
	getSyscallInfo = 0x420e // PTRACE_GET_SYSCALL_INFO, 5.3
	infoEntry      = 1      // PTRACE_SYSCALL_INFO_ENTRY
)

// changingCalls are system calls by which a command can change something that
// outlives it. Between two of them a kill makes no difference.
var changingCalls = map[uint64]string{
	unix.SYS_MKDIRAT: "mkdir", unix.SYS_RENAMEAT: "rename", unix.SYS_RENAMEAT2: "rename", unix.SYS_UNLINKAT: "unlink",
	unix.SYS_FLOCK: "flock", unix.SYS_MOUNT: "mount", unix.SYS_UMOUNT2: "umount",
	unix.SYS_SENDTO: "netlink", unix.SYS_SENDMSG: "netlink", unix.SYS_IOCTL: "ioctl",
}

// changingBPF are the commands of bpf(2) that change something.
var changingBPF = map[uint64]string{
	unix.BPF_MAP_CREATE: "map_create", unix.BPF_MAP_UPDATE_ELEM: "map_update", unix.BPF_MAP_DELETE_ELEM: "map_delete",
	unix.BPF_PROG_LOAD: "prog_load", unix.BPF_OBJ_PIN: "pin", unix.BPF_PROG_TEST_RUN: "prog_run",
	unix.BPF_LINK_CREATE: "link_create", unix.BPF_LINK_UPDATE: "link_update", unix.BPF_LINK_DETACH: "link_detach",
	unix.BPF_PROG_ATTACH: "prog_attach", unix.BPF_PROG_DETACH: "prog_detach",
}

func callName(info *syscallInfo) string {
	if info.nr == unix.SYS_BPF {
		return changingBPF[info.args[0]]
	}
	return changingCalls[info.nr]
}

// traced runs a command and kills it with SIGKILL when it is about to make its
// changing call number n (from 0), so that this call is not made; never if n is
// negative. It returns the calls it made and was about to make, and whether it
// was killed.
//
// strace would count for each thread, and Go moves between threads.
func traced(t *testing.T, cmd *exec.Cmd, n int) (calls []string, killed bool) {
	t.Helper()
	report, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer report.Close()
	defer w.Close()
	args := cmd.Args
	cmd.Args = append([]string{"tracer", cmd.Path}, args[1:]...)
	cmd.Path, cmd.Env = "/proc/self/exe", append(cmd.Environ(), tracerEnv+"="+strconv.Itoa(n))
	cmd.ExtraFiles = []*os.File{w}
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatalf("trace %v: %v", args, err)
	}
	var is trace
	err = errors.Join(json.NewDecoder(report).Decode(&is), cmd.Wait())
	if err != nil || is.Err != "" {
		t.Fatalf("trace %v: %v %s", args, err, is.Err)
	}
	return is.Calls, is.Killed
}

// tracerEnv has this binary be the tracer of the command in its arguments: a process
// of its own, since a tracer waits for any child, also for those of other tests.
const tracerEnv = "TAPGATE_TRACE_TO"

// trace is what a tracer reports.
type trace struct {
	Calls  []string
	Killed bool
	Err    string
}

// beTracer does so, if asked to, and does not return then.
func beTracer() {
	number, asked := os.LookupEnv(tracerEnv)
	if !asked {
		return
	}
	_ = os.Unsetenv(tracerEnv)
	unix.CloseOnExec(3)
	runtime.LockOSThread() // only the thread that traces may ask
	var is trace
	n, err := strconv.Atoi(number)
	if err == nil {
		cmd := exec.Command(os.Args[1], os.Args[2:]...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		is.Calls, is.Killed, err = traceCalls(cmd, n)
	}
	if err != nil {
		is.Err = err.Error()
	}
	if err := json.NewEncoder(os.NewFile(3, "report")).Encode(is); err != nil {
		fmt.Fprintln(os.Stderr, "tracer:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func traceCalls(cmd *exec.Cmd, n int) (calls []string, killed bool, err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, false, err
	}
	pid := cmd.Process.Pid
	defer func() { _ = cmd.Process.Release() }() // reaped below
	wait := func(who int, ws *unix.WaitStatus) (int, error) {
		for {
			got, err := unix.Wait4(who, ws, unix.WALL, nil)
			if !errors.Is(err, unix.EINTR) {
				return got, err
			}
		}
	}
	var ws unix.WaitStatus
	if _, err := wait(pid, &ws); err != nil {
		return nil, false, err
	}
	const exitKill = 0x100000 // PTRACE_O_EXITKILL
	if err := unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACECLONE|exitKill); err != nil {
		return nil, false, fmt.Errorf("ptrace options: %w", err)
	}
	known := map[int]bool{pid: true}
	who, signal := pid, 0
	for {
		// A thread that was killed meanwhile is gone: its end comes next.
		if err := unix.PtraceSyscall(who, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return calls, killed, fmt.Errorf("ptrace: %w", err)
		}
		for {
			if who, err = wait(-1, &ws); err != nil {
				return calls, killed, err
			}
			if ws.Stopped() {
				break
			}
			if who == pid {
				if killed != (ws.Signaled() && ws.Signal() == unix.SIGKILL) {
					err = fmt.Errorf("ended otherwise than expected: %#x", ws)
				}
				return calls, killed, err
			}
		}
		signal = 0
		switch sig := ws.StopSignal(); {
		case sig == unix.SIGTRAP|0x80:
			var info syscallInfo
			_, _, errno := unix.Syscall6(unix.SYS_PTRACE, getSyscallInfo, uintptr(who), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
			if errno != 0 || info.op != infoEntry || killed {
				break
			}
			if name := callName(&info); name != "" {
				calls = append(calls, name)
				if n >= 0 && len(calls) > n {
					killed = true
					if err := unix.Kill(pid, unix.SIGKILL); err != nil {
						return calls, killed, err
					}
				}
			}
		case sig == unix.SIGTRAP, sig == unix.SIGSTOP && !known[who]:
			// Events, and the first stop of a new thread.
		default:
			signal = int(sig)
		}
		known[who] = true
	}
}
