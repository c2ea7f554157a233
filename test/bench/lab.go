package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// The networks of the recipe. Addresses and names are those of the README.
var (
	serverAddr  = netip.MustParseAddr("192.168.3.2")
	gatewayAddr = netip.MustParseAddr("203.0.113.1") // outside
	outsideAddr = netip.MustParseAddr("203.0.113.8")

	serverMAC  = mac("02:00:00:00:03:02")
	insideMAC  = mac("02:00:00:00:03:01") // the gateway's eth3
	gatewayMAC = mac("02:00:00:00:01:01") // the gateway's eth0
	outsideMAC = mac("02:00:00:00:01:08")
)

const (
	serverPort  = 40000
	outsidePort = 9
)

// lab is one gateway in one mode, with its server, outside host and sensor.
type lab struct {
	set                              *settings
	mode                             mode
	gateway, server, outside, sensor string // network namespaces
	folder                           string // temporary, for the mode's own use

	toServer, toOutside, toSensor *ebpf.Map // tallies of the sinks
	sent                          *ebpf.Map
	generators                    map[int]*ebpf.Program // by direction
	iperf                         int                   // process id of the server
	closers                       []func()
}

var labs atomic.Int32

// prefix begins the names of this process's network namespaces.
func prefix() string { return fmt.Sprintf("tgbench-%d-", os.Getpid()) }

// nameLab is a lab with names and nothing behind them.
func nameLab(set *settings, m mode) *lab {
	name := fmt.Sprintf("%s%d-", prefix(), labs.Add(1))
	return &lab{
		set: set, mode: m,
		gateway: name + "gw", server: name + "srv", outside: name + "out", sensor: name + "sen",
		generators: map[int]*ebpf.Program{},
	}
}

// newLab builds the networks and puts the mode in force. Whatever was built is
// removed again if it fails.
func newLab(ctx context.Context, set *settings, m mode) (l *lab, err error) {
	l = nameLab(set, m)
	defer func() {
		if err != nil {
			l.close()
			l = nil
		}
	}()
	if l.folder, err = os.MkdirTemp("", "tapgate-bench-"); err != nil {
		return l, err
	}
	l.onClose(func() { os.RemoveAll(l.folder) })
	for _, step := range []func(context.Context) error{l.network, l.masquerade, l.sinks, l.generator, l.listen} {
		if err := step(ctx); err != nil {
			return l, err
		}
	}
	if m.up != nil {
		if err := m.up(ctx, l); err != nil {
			return l, err
		}
	}
	return l, l.warm()
}

func (l *lab) onClose(f func()) { l.closers = append(l.closers, f) }

func (l *lab) close() {
	for i := len(l.closers) - 1; i >= 0; i-- {
		l.closers[i]()
	}
	l.closers = nil
}

// network connects the hosts. eth2 has tx off in every mode, as tapgate sets
// it, so that each mode sends its copies as frames of wire size with complete
// checksums; the live frames of the generator need GRO on the receiving side.
func (l *lab) network(ctx context.Context) error {
	for _, ns := range []string{l.gateway, l.server, l.outside, l.sensor} {
		if err := l.run(ctx, "", "ip netns add "+ns); err != nil {
			return err
		}
		l.onClose(func() { _ = l.run(context.Background(), "", "ip netns del "+ns) })
		// No router solicitations and the like among the packets counted.
		if err := l.run(ctx, ns, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1"); err != nil {
			return err
		}
	}
	gw := "ip -n " + l.gateway
	return l.run(ctx, l.gateway,
		gw+" link add eth3 address "+insideMAC.String()+" type veth peer name eth0 address "+serverMAC.String()+" netns "+l.server,
		gw+" link add eth2 type veth peer name eth0 netns "+l.sensor,
		gw+" link add eth0 address "+gatewayMAC.String()+" type veth peer name eth0 address "+outsideMAC.String()+" netns "+l.outside,
		gw+" addr add 192.168.3.1/24 dev eth3",
		gw+" addr add 192.168.4.1/24 dev eth2",
		gw+" addr add 203.0.113.1/24 dev eth0",
		"ip -n "+l.server+" addr add 192.168.3.2/24 dev eth0",
		"ip -n "+l.sensor+" addr add 192.168.4.2/24 dev eth0",
		"ip -n "+l.outside+" addr add 203.0.113.8/24 dev eth0",
		"ethtool -K eth2 tx off",
		"ethtool -K eth3 gro on",
		"ethtool -K eth0 gro on",
		gw+" link set eth3 up",
		gw+" link set eth2 up",
		gw+" link set eth0 up",
		"ip -n "+l.server+" link set eth0 up",
		"ip -n "+l.sensor+" link set eth0 up",
		"ip -n "+l.outside+" link set eth0 up",
		"ip -n "+l.server+" route add default via 192.168.3.1",
		gw+" neigh replace 192.168.3.2 lladdr "+serverMAC.String()+" dev eth3",
		gw+" neigh replace 203.0.113.8 lladdr "+outsideMAC.String()+" dev eth0",
		"sysctl -qw net.ipv4.ip_forward=1",
	)
}

// masquerade has the kernel translate what leaves by eth0.
func (l *lab) masquerade(ctx context.Context) error {
	return l.run(ctx, l.gateway,
		"nft add table ip nat",
		"nft add chain ip nat post { type nat hook postrouting priority srcnat; }",
		"nft add rule ip nat post oifname eth0 masquerade",
	)
}

// sinks count and drop what arrives: the test's UDP at both ends, and
// everything at the sensor, which only answers ARP.
func (l *lab) sinks(context.Context) (err error) {
	for _, s := range []struct {
		ns      string
		onlyUDP bool
		tally   **ebpf.Map
	}{{l.server, true, &l.toServer}, {l.outside, true, &l.toOutside}, {l.sensor, false, &l.toSensor}} {
		if *s.tally, err = newTally(); err != nil {
			return err
		}
		l.onClose(func() { (*s.tally).Close() })
		prog, err := newSink(*s.tally, s.onlyUDP, nil)
		if err != nil {
			return err
		}
		if err := l.attach(s.ns, "eth0", prog, ebpf.AttachTCXIngress); err != nil {
			return err
		}
	}
	return nil
}

// attach puts a program on an interface until the lab is closed, and takes
// over the program.
func (l *lab) attach(ns, dev string, prog *ebpf.Program, where ebpf.AttachType) error {
	return l.attachAt(ns, dev, prog, where, nil)
}

// attachAt is attach with a place among the programs that are there; nil is
// behind them.
func (l *lab) attachAt(ns, dev string, prog *ebpf.Program, where ebpf.AttachType, anchor link.Anchor) error {
	defer prog.Close()
	return within(ns, -1, func() error {
		ifc, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		lnk, err := link.AttachTCX(link.TCXOptions{Interface: ifc.Index, Program: prog, Attach: where, Anchor: anchor})
		if err != nil {
			return fmt.Errorf("attach to %s: %w", dev, err)
		}
		l.onClose(func() { lnk.Close() })
		return nil
	})
}

// listen starts the iperf3 server at the outside host and waits until it does.
func (l *lab) listen(context.Context) error {
	ready, stop, stopped := make(chan error, 1), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		err := within(l.outside, l.set.cpu, func() error {
			cmd := exec.Command("iperf3", "--server", "--forceflush")
			// Comes when the thread that started it ends, so this one waits:
			// a benchmark that is killed leaves no server behind.
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			out, err := cmd.StdoutPipe()
			if err != nil {
				return err
			}
			if err := cmd.Start(); err != nil {
				return err
			}
			l.iperf = cmd.Process.Pid
			result := errors.New("iperf3 server ended before it listened")
			for lines := bufio.NewScanner(out); result != nil && lines.Scan(); {
				if strings.Contains(lines.Text(), "Server listening") {
					result = nil
				}
			}
			ready <- result
			// Read on, or the server blocks on a full pipe.
			go func() { _, _ = io.Copy(io.Discard, out) }()
			<-stop
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			return nil
		})
		if err != nil {
			ready <- err
		}
	}()
	l.onClose(func() { close(stop); <-stopped })
	return <-ready
}

// run executes commands, one a line as one would type them, in a network
// namespace, and stops at the first that fails.
func (l *lab) run(ctx context.Context, ns string, commands ...string) error {
	return within(ns, -1, func() error {
		for _, c := range commands {
			words := strings.Fields(c)
			out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%s: %w: %s", c, err, strings.TrimSpace(string(out)))
			}
		}
		return nil
	})
}

func mac(s string) net.HardwareAddr {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}
