package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"tapgate/loader"
	"tapgate/test/lab"
)

const (
	demoPings = 3
	// demoPatience bounds each wait for frames that should come at once.
	demoPatience = 3 * time.Second
)

// demoConfig is for the interfaces of package lab.
const demoConfig = `zones:
  external: {interfaces: [eth0]}
  internal: {interfaces: [eth3]}
  dmz:      {interfaces: [eth2]}
  mgmt:     {interfaces: [eth4]}
nat:
  masquerade:
    - {from: internal, to: external}
  forwards:
    - {name: rdp, in: external, proto: tcp, port: 3389, to: "192.168.3.2:3389"}
mirrors:
  - name: ids
    zones: [internal]            # both directions
    targets:
      - {via: 192.168.4.2}       # the sensor
`

func newDemoCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Build a gateway in network namespaces, show what it does and what the sensor sees",
		Long: `Builds a gateway, a server, a host outside and a sensor in network namespaces and
puts an example configuration in force. The server pings the host outside, the
host outside uses a forward to the server, the sensor tries to get out of its
network. Shows what the sensor and the others saw, and the gateway's flows, and
takes everything down again. Nothing of netfilter is used, and the machine's own
networks are not touched.

It succeeds only if the sensor saw every ping in both directions, with the
server's own address and bit for bit as the server sent and received it, if the
forward worked, and if nothing of the sensor's came through.`,
		Example: "  tapgate demo",
		Args:    noArgs,
		RunE: e.privileged(func(cmd *cobra.Command, _ []string) error {
			for _, name := range []string{"netns", "bpffs"} {
				if cmd.Flags().Changed(name) {
					return usagef("--%s: the demo makes its own", name)
				}
			}
			var pass []string
			for _, name := range []string{"verbose", "attach-kind", "lock-timeout"} {
				if f := cmd.Flags().Lookup(name); f != nil && f.Changed {
					pass = append(pass, "--"+name+"="+f.Value.String())
				}
			}
			// SIGPIPE as well: "tapgate demo | head" must not leave a gateway behind.
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
			defer stop()
			return e.demo(ctx, pass)
		}),
	}
}

// demo is the whole demonstration. Whatever happens, nothing is left behind;
// what a killed demo left is taken away first.
func (e *env) demo(ctx context.Context, flags []string) error {
	stale, err := lab.RemoveStale()
	if err != nil {
		e.say("warning: remove what a killed demo left: %v", err)
	}
	if len(stale) > 0 {
		e.say("removed what a killed demo left: %d namespaces and folders", len(stale))
	}
	l, err := lab.New(lab.Prefix("tgdemo"))
	if err != nil {
		return err
	}
	d := &demo{env: e, lab: l, flags: flags}
	err = d.run(ctx)
	if ctx.Err() != nil {
		err = errors.New("demo: interrupted")
	}
	if d.applied {
		// On the way out of a failure: the namespaces are removed in any case.
		err = errors.Join(err, d.tapgate("detach"))
	}
	if err := errors.Join(err, l.Close()); err != nil {
		if ctx.Err() != nil {
			e.say("everything is taken down")
		}
		return err
	}
	return d.print(`
All is taken down. The sensor saw each ping in both directions, as the server did, bit for bit. The
forward was reached from outside, and nothing of the sensor's came out of its network.
`)
}

type demo struct {
	*env
	lab     *lab.Lab
	flags   []string
	bpffs   string
	applied bool
}

func (d *demo) run(ctx context.Context) error {
	l := d.lab
	server, outside := l.Servers[0], l.Outside[0]
	var err error
	if d.bpffs, err = l.MountBPFFS(); err != nil {
		return err
	}
	file := filepath.Join(l.Dir, "tapgate.yaml")
	if err := os.WriteFile(file, []byte(demoConfig), 0o600); err != nil {
		return err
	}
	if err := d.print(`A gateway in network namespaces, without any rules of netfilter:

  outside %-12s ---- eth0 gateway eth3 ---- server %s
                                    gateway eth2 ---- sensor %s
                                    gateway eth4 ---- mgmt   %s

%s:
%s`, outside.Addr, server.Addr, l.Sensor.Addr, l.Mgmt.Addr, file, indent(demoConfig)); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	apply := []string{"apply", "-f", file}
	if err := d.announce(apply); err != nil {
		return err
	}
	d.applied = true // even half done
	if err := d.tapgate(apply...); err != nil {
		return err
	}
	if err := d.resolve(ctx); err != nil {
		return err
	}
	if err := d.ping(ctx); err != nil {
		return err
	}
	closed, err := d.forward(ctx)
	if err != nil {
		return err
	}
	err = d.show("flows") // while it is open
	closed()
	if err != nil {
		return err
	}
	if err := d.escape(ctx); err != nil {
		return err
	}
	if err := d.show("status"); err != nil {
		return err
	}
	d.applied = false
	return d.show("detach")
}

// ping sends the pings, shows them as the sensor and the host outside saw
// them, and judges.
func (d *demo) ping(ctx context.Context) error {
	server, outside := d.lab.Servers[0], d.lab.Outside[0]
	captures := map[*lab.Host]*lab.Capture{}
	for host, direction := range map[*lab.Host]lab.Direction{server: lab.Both, outside: lab.Both, d.lab.Sensor: lab.Incoming} {
		c, err := host.Capture("eth0", direction)
		if err != nil {
			return err
		}
		defer context.AfterFunc(ctx, func() { _, _ = c.Stop() })()
		captures[host] = c
	}
	if err := d.print("\nThe server pings the host outside: %d times.\n", demoPings); err != nil {
		return err
	}
	replies, err := server.Ping(ctx, outside.Addr, demoPings)
	if err != nil {
		return err
	}
	// What is not there in time is told by the judge.
	_, _ = captures[d.lab.Sensor].WaitFor(func(f []lab.Frame) bool { return len(pings(f)) >= 2*demoPings }, demoPatience)
	if err := ctx.Err(); err != nil {
		return err
	}
	seen := map[*lab.Host][]ping{}
	for host, c := range captures {
		frames, err := c.Stop()
		if err != nil {
			return err
		}
		seen[host] = pings(frames)
	}
	if err := d.print("\nThe sensor saw (the server's own address, both directions):\n%s\nThe host outside saw (only the gateway's own address, %s):\n%s",
		lines(seen[d.lab.Sensor]), d.lab.Gateway.Addr, lines(seen[outside])); err != nil {
		return err
	}
	return judge(replies, seen[server], seen[d.lab.Sensor], seen[outside], d.lab)
}

// judge says what is missing or wrong.
func judge(replies int, server, sensor, outside []ping, l *lab.Lab) error {
	var errs []error
	fail := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("demo: "+format, args...))
	}
	if replies != demoPings {
		fail("the server got %d replies to %d pings", replies, demoPings)
	}
	if len(server) != 2*demoPings {
		fail("the server sent and received %d packets of its pings, not %d", len(server), 2*demoPings)
	}
	inside, gateway, far := l.Servers[0].Addr, l.Gateway.Addr, l.Outside[0].Addr
	copies := map[string]int{}
	for _, p := range sensor {
		copies[string(p.packet)]++
	}
	for _, p := range server {
		switch n := copies[string(p.packet)]; {
		case p.reply && (p.src != far || p.dst != inside), !p.reply && (p.src != inside || p.dst != far):
			fail("the server met a ping that is not its own: %s", p)
		case n == 0:
			fail("the sensor did not see, bit for bit: %s", p)
		case n > 1:
			fail("the sensor saw %d times: %s", n, p)
		}
		delete(copies, string(p.packet))
	}
	for _, p := range sensor {
		if copies[string(p.packet)] > 0 {
			fail("the sensor saw what the server did not send or receive: %s", p)
		}
	}
	for _, p := range outside {
		if p.reply && p.dst != gateway || !p.reply && p.src != gateway {
			fail("the host outside saw another address than the gateway's: %s", p)
		}
	}
	return errors.Join(errs...)
}

// resolve waits until the sensor's MAC is known: it is asked for when there is
// something to copy, and what comes before the answer is not copied.
func (d *demo) resolve(ctx context.Context) error {
	deadline := time.Now().Add(demoPatience)
	for told := false; ; {
		known, err := d.neighboursKnown()
		if known || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			// The pings go out all the same, and the judge says what is missing.
			d.say("warning: the sensor did not answer for its MAC within %v", demoPatience)
			return nil
		}
		if !told {
			told = true
			if err := d.print("(a first ping, to the gateway, has the sensor's MAC asked for)\n"); err != nil {
				return err
			}
		}
		if _, err := d.lab.Servers[0].Ping(ctx, d.lab.Gateway.Interface("eth3").Addr.Addr(), 1); err != nil {
			return err
		}
		select {
		case <-time.After(10 * time.Millisecond): // for the answer
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (d *demo) neighboursKnown() (bool, error) {
	status, err := d.status()
	if err != nil {
		return false, err
	}
	for _, m := range status.Mirrors {
		for _, t := range m.Targets {
			if t.Neighbour != nil && t.Neighbour.MAC == "" {
				return false, nil
			}
		}
	}
	return true, nil
}

// status is that of the demo's gateway.
func (d *demo) status() (s loader.Status, err error) {
	var out bytes.Buffer
	if err := d.quiet(&out, "status", "--json"); err != nil {
		return s, err
	}
	if err := json.Unmarshal(out.Bytes(), &s); err != nil {
		return s, fmt.Errorf("demo: tapgate status --json: %w", err)
	}
	return s, nil
}

// show prints a command line of tapgate as a user would type it, and obeys it.
func (d *demo) show(args ...string) error {
	if err := d.announce(args); err != nil {
		return err
	}
	return d.tapgate(args...)
}

func (d *demo) announce(args []string) error {
	return d.print("\n$ tapgate %s\n", strings.Join(d.line(args), " "))
}

func (d *demo) tapgate(args ...string) error { return d.quiet(nil, args...) }

// quiet runs a command of tapgate in this process, with the demo's streams but
// for stdout if given.
func (d *demo) quiet(stdout *bytes.Buffer, args ...string) error {
	inner := *d.env
	if stdout != nil {
		inner.stdout = stdout
	}
	if err := run(&inner, d.line(args)); err != nil {
		// Only the text: its kind is about the inner command, not about ours.
		return fmt.Errorf("demo: tapgate %s: %s", args[0], strings.Join(errorLines(err), "; "))
	}
	return nil
}

func (d *demo) line(args []string) []string {
	return append(append(args[:len(args):len(args)], "--netns", d.lab.Gateway.Name, "--bpffs", d.bpffs), d.flags...)
}

func (d *demo) print(format string, args ...any) error {
	_, err := fmt.Fprintf(d.stdout, format, args...)
	return err
}
