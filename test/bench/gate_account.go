package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// account is what a gateway says that it did, by which a measurement is believed
// or refused.
type account struct {
	flows float64 // in its table
	// Of tapgate, but for new flows: packets that came in from inside and outside,
	// and those of them that did not take the stack.
	packets, fast float64
}

// refusal is why a figure does not stand: the gateway did other work than it says.
type refusal string

func (r refusal) Error() string { return string(r) }

func (l *gateLab) account(ctx context.Context) (a account, err error) {
	switch {
	case l.mode.direct:
		return a, nil
	case l.mode.kernel:
		err = within(l.gateway, -1, func() error {
			text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
			if err == nil {
				a.flows, err = strconv.ParseFloat(strings.TrimSpace(string(text)), 64)
			}
			return err
		})
		return a, err
	case l.scenario.fresh:
		// Not by "tapgate status": it tidies the table, which is the packets' work here.
		a.flows, err = l.tableFlows()
		return a, err
	}
	out, err := exec.CommandContext(ctx, l.set.tapgate, "status", "--json", "--netns", l.gateway, "--bpffs", l.bpffs()).Output()
	if err != nil {
		return a, fmt.Errorf("tapgate status: %w", err)
	}
	return accountOf(out)
}

// accountOf reads what "tapgate status --json" prints.
func accountOf(status []byte) (a account, err error) {
	var s struct {
		Interfaces []struct {
			Role    string
			Ingress struct{ Reasons map[string]float64 }
		}
		Gateway struct{ Flows float64 }
	}
	if err := json.Unmarshal(status, &s); err != nil {
		return a, fmt.Errorf("read tapgate status: %w", err)
	}
	a.flows = s.Gateway.Flows
	for _, ifc := range s.Interfaces {
		if ifc.Role != "internal" && ifc.Role != "external" {
			continue
		}
		for reason, n := range ifc.Ingress.Reasons {
			a.packets += n
			if reason == "pass_fast" {
				a.fast += n
			}
		}
	}
	return a, nil
}

// tableFlows is how many flows stand in tapgate's table. The map's type says where
// the number stands.
func (l *gateLab) tableFlows() (float64, error) {
	files, _ := filepath.Glob(filepath.Join(l.bpffs(), "tapgate", "*", "maps", "tg_table"))
	if len(files) != 1 {
		return 0, fmt.Errorf("%d pins of map tg_table", len(files))
	}
	m, err := ebpf.LoadPinnedMap(files[0], &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return 0, fmt.Errorf("open tapgate's table: %w", err)
	}
	defer m.Close()
	handle, err := m.Handle()
	if err != nil {
		return 0, fmt.Errorf("types of tapgate's table: %w", err)
	}
	defer handle.Close()
	types, err := handle.Spec(nil)
	if err != nil {
		return 0, fmt.Errorf("types of tapgate's table: %w", err)
	}
	var state *btf.Struct
	if err := types.TypeByName("tg_table_state", &state); err != nil {
		return 0, fmt.Errorf("types of tapgate's table: %w", err)
	}
	value, err := m.LookupBytes(uint32(0))
	if err != nil || value == nil {
		return 0, fmt.Errorf("read tapgate's table: %w", err)
	}
	for _, field := range state.Members {
		if field.Name == "flows" {
			return float64(binary.NativeEndian.Uint32(value[field.Offset.Bytes():])), nil
		}
	}
	return 0, errors.New("tapgate's table has no flows")
}

// checked measures, and refuses what other work than the load's was measured.
func (l *gateLab) checked(ctx context.Context, t gateLoad, n int) (s sample, err error) {
	before, err := l.account(ctx)
	if err != nil {
		return s, err
	}
	if s, err = t.measure(ctx, l, n); err != nil {
		return s, err
	}
	after, err := l.account(ctx)
	if err != nil {
		return s, err
	}
	if !l.mode.direct && !l.mode.kernel {
		s.Fast = (after.fast - before.fast) / max(after.packets-before.packets, 1)
	}
	return s, l.judge(s, after.flows-before.flows)
}

// enoughFast of the packets must take the fast path. A flow's packet in ten seconds
// and direction that does not is on purpose: of a million flows these are 200,000 a
// second, so that it takes most of ten seconds to make them ready.
func (s scenario) enoughFast() float64 {
	switch {
	case s.flows >= million:
		return 0.8
	case s.hosts:
		return 0.95 // TCP's first and last packets
	}
	return 0.99
}

func (l *gateLab) judge(s sample, flows float64) error {
	switch {
	case s.Units < 0.99*s.Sent:
		return refusal(fmt.Sprintf("%.1f %% were lost", 100*(1-s.Units/s.Sent)))
	case l.scenario.fresh && !l.mode.direct && flows != s.Sent:
		return refusal(fmt.Sprintf("%.0f flows were made, and the table has %.0f more", s.Sent, flows))
	case l.scenario.fresh || l.set.allowSlow:
		return nil
	case l.mode.fast && s.Fast < l.scenario.enoughFast():
		return refusal(fmt.Sprintf("%.1f %% of the packets took the fast path", 100*s.Fast))
	case !l.mode.fast && s.Fast > 0:
		return refusal(fmt.Sprintf("%.1f %% of the packets took the fast path, which this gateway must not have", 100*s.Fast))
	}
	return nil
}

// wantCopies refuses a tap that does not copy each packet once.
func (l *gateLab) wantCopies(s sample, packets float64) error {
	if l.mode.tap && (s.Frames < 0.99*packets || s.Frames > 1.01*packets+2) {
		return refusal(fmt.Sprintf("%.0f copies of %.0f packets", s.Frames, packets))
	}
	return nil
}
