// Package lab builds the networks of a gateway from network namespaces and
// veth pairs: the gateway itself, servers on its internal network, hosts
// outside, a sensor in the dmz and a host on the management network. Nothing
// outside those namespaces is touched.
//
//	outside eth0 ---- eth0 gateway eth3 ---- eth0 servers
//	                       gateway eth2 ---- eth0 sensor
//	                       gateway eth4 ---- eth0 mgmt
//	                       gateway eth5 ---- eth0 second   (option)
//
// It is used by the tests and by "tapgate demo". It needs root and a kernel,
// and no tools. Networks with more than one host are joined by a bridge in a
// namespace of its own; with one host the cable is direct.
package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// settleTime bounds the wait for links and addresses; emulated kernels are slow.
const settleTime = 20 * time.Second

// Lab is a gateway with its networks. Hosts that the options left out are nil.
type Lab struct {
	Gateway *Host   // eth0 external, eth3 internal, eth2 dmz, eth4 mgmt, eth5 second
	Servers []*Host // 192.168.3.2, .3, ...
	Outside []*Host // 203.0.113.8, .9, ...
	Sensor  *Host   // 192.168.4.2
	Mgmt    *Host   // 192.168.5.2
	Second  *Host   // 192.168.6.2, on the gateway's second internal network

	// Dir is a temporary folder that belongs to the lab and goes with it.
	Dir string

	id     string // prefix-pid-n: what all names begin with
	mtu    int
	ipv6   bool
	dirFD  *os.File // its lock says that the lab is in use
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex
	spaces  []*namespace
	closers []func()
	mounts  []string
	closed  bool
}

var labs atomic.Int64

// New builds a lab, waits until its links and addresses are usable, and
// leaves nothing behind when it fails. IPv4 and IPv6 are forwarded by the
// gateway, and translated only after Masquerade.
func New(opts ...Option) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the lab needs root to make network namespaces: run as root")
	}
	o := defaults()
	for _, opt := range opts {
		opt(&o)
	}
	l := &Lab{id: fmt.Sprintf("%s-%d-%d", o.prefix, os.Getpid(), labs.Add(1)), mtu: o.mtu}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	if err := l.build(o); err != nil {
		return nil, errors.Join(fmt.Errorf("build lab %s: %w", l.id, err), l.Close())
	}
	return l, nil
}

func (l *Lab) build(o options) error {
	if !prefixForm.MatchString(o.prefix) {
		return fmt.Errorf("prefix %q: use small letters and digits, starting with a letter", o.prefix)
	}
	dir, err := os.MkdirTemp("", l.id+"-*")
	if err != nil {
		return err
	}
	l.Dir = dir
	if l.dirFD, err = os.Open(dir); err != nil {
		return err
	}
	if err := unix.Flock(int(l.dirFD.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	if err := os.WriteFile(filepath.Join(dir, markName), nil, 0o400); err != nil {
		return err
	}
	_, err = os.Stat("/proc/sys/net/ipv6")
	l.ipv6 = err == nil

	if l.Gateway, err = l.newHost("gw", true); err != nil {
		return err
	}
	for _, n := range o.networks() {
		hosts, err := l.newNetwork(n)
		if err != nil {
			return fmt.Errorf("%s network: %w", n.name, err)
		}
		switch n.name {
		case "external":
			l.Outside = hosts
		case "internal":
			l.Servers = hosts
		case "dmz":
			l.Sensor = hosts[0]
		case "mgmt":
			l.Mgmt = hosts[0]
		case "second":
			l.Second = hosts[0]
		}
	}
	if o.routed {
		for _, h := range l.Outside {
			if err := h.addDefaultRoute(networkExternal); err != nil {
				return err
			}
		}
	}
	return l.settle()
}

// Hosts returns every host, the gateway first.
func (l *Lab) Hosts() []*Host {
	hosts := append([]*Host{l.Gateway}, l.Servers...)
	hosts = append(hosts, l.Outside...)
	for _, h := range []*Host{l.Sensor, l.Mgmt, l.Second} {
		if h != nil {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// Context ends when the lab is closed.
func (l *Lab) Context() context.Context { return l.ctx }

// MountBPFFS mounts a BPF filesystem on a folder in Dir and returns it. It goes
// with the lab. Calling it again returns the same folder.
func (l *Lab) MountBPFFS() (string, error) {
	dir := filepath.Join(l.Dir, bpffsName)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return "", fmt.Errorf("lab %s is closed", l.id)
	}
	if len(l.mounts) > 0 {
		return dir, nil
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	if err := unix.Mount("tapgate-lab", dir, "bpf", 0, "mode=0700"); err != nil {
		return "", fmt.Errorf("mount a bpf filesystem on %s: %w", dir, err)
	}
	l.mounts = append(l.mounts, dir)
	return dir, nil
}

const (
	bpffsName = "bpf"
	// markName says that a folder is a lab's. It appears once the lock is held.
	markName = ".tapgate-lab"
)

// Close ends what was started in the lab and removes its namespaces and its
// folder. It may be called again, and at any time.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	closers, spaces := l.closers, l.spaces
	l.mu.Unlock()

	for i := len(closers) - 1; i >= 0; i-- {
		closers[i]()
	}
	var errs []error
	l.cancel()
	for _, ns := range spaces {
		errs = append(errs, ns.remove())
	}
	if l.Dir != "" {
		errs = append(errs, removeDir(l.Dir))
	}
	if l.dirFD != nil {
		errs = append(errs, l.dirFD.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close lab %s: %w", l.id, err)
	}
	return nil
}

// onClose has f called by Close; f must be harmless when called twice.
func (l *Lab) onClose(f func()) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fmt.Errorf("lab %s is closed", l.id)
	}
	l.closers = append(l.closers, f)
	return nil
}

// removeDir takes away a lab's folder and the BPF filesystems mounted in it:
// the lab's own, and any that tapgate mounted on the same place.
func removeDir(dir string) error {
	bpffs := filepath.Join(dir, bpffsName)
	for {
		err := unix.Unmount(bpffs, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return os.RemoveAll(dir)
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", bpffs, err)
		}
	}
}

// waitUntil asks again and again, at first quickly, until ok or the time is up.
func waitUntil(limit time.Duration, ok func() (bool, error)) error {
	deadline := time.Now().Add(limit)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		done, err := ok()
		if done || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not so after %v", limit)
		}
		time.Sleep(pause)
	}
}

func hostBits(p netip.Prefix, n int) netip.Prefix {
	b := p.Masked().Addr().AsSlice()
	b[len(b)-1] += byte(n)
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(a, p.Bits())
}
