package loader

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Errors that callers tell apart.
var (
	// ErrNotAttached: there is no gateway in this network namespace.
	ErrNotAttached = errors.New("not attached here")
	// ErrBusy: another tapgate holds the lock.
	ErrBusy = errors.New("another tapgate is at work")
	// ErrState: pinned state that this binary does not understand.
	ErrState = errors.New("state that this tapgate does not understand")
)

// ConfigError is a configuration that cannot be applied. Path names the place
// as "zones.internal.interfaces[0]" or "mirrors[0].targets[1].via", so that the
// caller can find the line it came from.
type ConfigError struct {
	Path string
	Err  string // what is wrong and what to do
}

func (e *ConfigError) Error() string { return e.Path + ": " + e.Err }

func configErrorf(path, format string, args ...any) error {
	return &ConfigError{Path: path, Err: fmt.Sprintf(format, args...)}
}

// logTail is how many lines of the verifier's log an error shows.
const logTail = 10

// loadError tells why the kernel refused the programs, in three doses: the
// last lines here, all of it in a file, and all of it here if verbose.
func loadError(err error, verbose bool) error {
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w (root needs CAP_BPF and CAP_NET_ADMIN, and before kernel 5.11 a high \"ulimit -l\")", err)
	}
	var refused *ebpf.VerifierError
	if !errors.As(err, &refused) {
		return fmt.Errorf("load programs: %w", err)
	}
	if verbose {
		return fmt.Errorf("load programs: %+v", refused)
	}
	where := ""
	if f, ferr := os.CreateTemp("", "tapgate-verifier-*.log"); ferr == nil {
		_, werr := f.WriteString(strings.Join(refused.Log, "\n") + "\n")
		if errors.Join(werr, f.Close()) == nil {
			where = "; the whole log is in " + f.Name()
		}
	}
	return fmt.Errorf("load programs: %-*v%s; see also \"tapgate check\"", logTail, refused, where)
}
