package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Firewalld is a firewalld that runs in a host's network namespace, with a bus, a
// configuration and a /run of its own: nothing of the machine's is read or changed.
type Firewalld struct {
	// Config is its configuration folder, what /etc/firewalld is on a machine.
	// It begins without a file but firewalld.conf: the default rules.
	Config string

	host     *Host
	bus      string
	daemons  []*Cmd // in the order they were started
	finished []chan struct{}
}

// firewalldWait bounds waits for it: an interpreter that starts on a busy machine.
const firewalldWait = 60 * time.Second

// stopWait is how long a daemon has to end by itself.
const stopWait = 20 * time.Second

// The bus allows everybody everything: who may reach its socket is root anyway.
const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path=%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow send_type="method_call"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
`

// StartFirewalld starts firewalld with its default rules in the host's namespace:
// no interface is in a zone, so all are in "public". Settings are lines of
// firewalld.conf, as "FirewallBackend=iptables". It needs firewalld and dbus-daemon.
// It ends with the lab, or by Stop.
func (h *Host) StartFirewalld(settings ...string) (*Firewalld, error) {
	// Short: the path of a socket may have 107 bytes.
	dir, err := os.MkdirTemp(h.lab.Dir, "fw-*")
	if err != nil {
		return nil, err
	}
	f := &Firewalld{Config: filepath.Join(dir, "etc"), host: h, bus: filepath.Join(dir, "bus")}
	if err := f.start(dir, settings); err != nil {
		return nil, errors.Join(fmt.Errorf("start firewalld in %s: %w", h.Name, err), f.Stop())
	}
	return f, h.lab.onClose(func() { _ = f.Stop() })
}

func (f *Firewalld) start(dir string, settings []string) error {
	run := filepath.Join(dir, "run")
	for _, d := range []string{run, f.Config} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		filepath.Join(dir, "bus.conf"):            fmt.Sprintf(busConfig, f.bus),
		filepath.Join(f.Config, "firewalld.conf"): strings.Join(append([]string{"FirewallBackend=nftables"}, settings...), "\n") + "\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			return err
		}
	}
	if err := f.daemon(filepath.Join(dir, "bus.log"), "dbus-daemon", "--nofork", "--nopidfile", "--config-file="+filepath.Join(dir, "bus.conf")); err != nil {
		return err
	}
	log := filepath.Join(dir, "firewalld.log")
	// A /run of its own: firewalld's folder there is the machine's.
	err := f.daemon(log, "unshare", "--mount", "--propagation=private", "sh", "-c",
		`mount --bind "$1" /run && exec firewalld --nofork --nopid --log-target console --system-config "$2"`, "sh", run, f.Config)
	if err != nil {
		return err
	}
	var last error
	err = waitUntil(firewalldWait, func() (bool, error) {
		select {
		case <-f.finished[len(f.finished)-1]:
			text, _ := os.ReadFile(log)
			return false, fmt.Errorf("it ended: %s", strings.TrimSpace(string(text)))
		default:
		}
		_, last = f.FirewallCmd("--state")
		return last == nil, nil
	})
	if err != nil && last != nil {
		err = fmt.Errorf("%w: %w", err, last)
	}
	return err
}

// daemon starts a program whose output goes to a file.
func (f *Firewalld) daemon(log string, name string, args ...string) error {
	out, err := os.Create(log)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := f.command(name, args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended stands in its log
		close(done)
	}()
	f.daemons, f.finished = append(f.daemons, cmd), append(f.finished, done)
	return nil
}

func (f *Firewalld) command(name string, args ...string) *Cmd {
	cmd := f.host.Command(context.Background(), name, args...)
	cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS=unix:path="+f.bus, "LC_ALL=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1")
	return cmd
}

// FirewallCmd runs firewall-cmd with these arguments and returns what it printed.
func (f *Firewalld) FirewallCmd(args ...string) (string, error) {
	out, err := f.command("firewall-cmd", args...).CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return text, fmt.Errorf("firewall-cmd %s: %w: %s", strings.Join(args, " "), err, text)
	}
	return text, nil
}

// Shell runs a line of shell in the host, in which firewall-cmd talks to this
// firewalld, and returns what it printed.
func (f *Firewalld) Shell(line string) (string, error) {
	out, err := f.command("sh", "-ec", line).CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return text, fmt.Errorf("%s: %w: %s", line, err, text)
	}
	return text, nil
}

// Stop ends firewalld, which takes its rules away, and its bus. It may be called again.
func (f *Firewalld) Stop() error {
	var errs []error
	for i := len(f.daemons) - 1; i >= 0; i-- {
		if err := f.daemons[i].Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
		select {
		case <-f.finished[i]:
			continue
		case <-time.After(stopWait):
		}
		errs = append(errs, fmt.Errorf("%s did not end within %v", f.daemons[i].Args[0], stopWait), f.daemons[i].Process.Kill())
		<-f.finished[i]
	}
	f.daemons, f.finished = nil, nil
	return errors.Join(errs...)
}
