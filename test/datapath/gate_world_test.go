package datapath

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"tapgate/test/model"
)

// dice are where a sequence's choices come from: a random generator, or the
// bytes of a fuzzer, which end.
type dice struct {
	rnd  *rand.Rand
	data []byte
	end  bool
}

// n is a number below limit.
func (d *dice) n(limit int) int {
	if d.rnd != nil {
		return d.rnd.IntN(limit)
	}
	if len(d.data) == 0 {
		d.end = true
		return 0
	}
	b := int(d.data[0])
	d.data = d.data[1:]
	if limit > 256 && len(d.data) > 0 {
		b |= int(d.data[0]) << 8
		d.data = d.data[1:]
	}
	return b % limit
}

// chance is true with so many percent.
func (d *dice) chance(percent int) bool { return d.n(100) < percent }

func pick[T any](d *dice, list []T) T { return list[d.n(len(list))] }

// world is the gateway with its programs, the model beside it, and the hosts
// around it.
type world struct {
	*dice
	r        *rig
	programs map[string]*ebpf.Program
	maps     *gateMaps
	relay    *relay
	tcIndex  uint16         // of the packet at hand
	slots    map[int]uint32 // counters of an interface
	counted  map[uint32][]uint64
	model    *model.Model
	ports    []model.Ports
	scenario int
	offset   int64 // virtual time
	runs     int   // packets so far, at each hook
	did      map[string]int
	strays   uint64 // halves on their way out, at the last comparison

	log     []string
	in, out []heard // what hosts inside and remotes got lately
	sent    []place // what hosts inside sent lately
}

// place is a packet and the interface that it came in by.
type place struct {
	talk
	in int
}

const logged = 200

func (w *world) note(format string, args ...any) {
	if len(w.log) == logged {
		w.log = append(w.log[:0], w.log[1:]...)
	}
	w.log = append(w.log, fmt.Sprintf("%d: ", w.runs)+fmt.Sprintf(format, args...))
}

func newWorld(r *rig) (*world, error) {
	w := &world{r: r, programs: map[string]*ebpf.Program{}, slots: map[int]uint32{}, counted: map[uint32][]uint64{}, did: map[string]int{}, scenario: -1}
	for _, name := range []string{"tap_in", "tap_out", "sweep", "flush"} {
		p, err := ebpf.LoadPinnedProgram(r.dir+"/programs/tapgate_"+name, nil)
		if err != nil {
			return nil, err
		}
		w.programs[name] = p
	}
	var err error
	if w.maps, err = newGateMaps(w.programs); err != nil {
		return nil, err
	}
	if err := w.maps.forget("tg_own_peers"); err != nil {
		return nil, err
	}
	if w.relay, err = newRelay(w.programs["tap_in"], w.programs["tap_out"]); err != nil {
		return nil, err
	}
	if w.ports, err = r.hostPorts(); err != nil {
		return nil, err
	}
	w.model = model.New(model.Config{})
	w.model.Keep = true
	w.model.Evicted = w.maps.evicted
	w.model.Unbound = w.maps.unbound
	return w, nil
}

// hostPorts are the ports that masquerade uses where a rule says nothing.
func (r *rig) hostPorts() (ranges []model.Ports, err error) {
	err = r.Gateway.Do(func() error {
		text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
		if err != nil {
			return err
		}
		var low, high uint16
		if _, err := fmt.Sscan(string(text), &low, &high); err != nil {
			return err
		}
		ranges = []model.Ports{{First: 1024, Last: low - 1}, {First: high + 1, Last: 65535}}
		return nil
	})
	return ranges, err
}

func (w *world) close() {
	for _, p := range w.programs {
		p.Close()
	}
	w.maps.close()
	w.relay.close()
}

// now is the time of program and model: the boot clock and what was made to go by.
func (w *world) now() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return ts.Nano() + w.offset
}

// apply puts a scenario in force. Flows stay.
func (w *world) apply(n int) error {
	s := scenarios[n]
	w.note("apply %s", s.name)
	if _, err := w.r.gw.Apply(s.config()); err != nil {
		return fmt.Errorf("apply %s: %w", s.name, err)
	}
	w.scenario = n
	limit := func(n int) uint64 {
		if n == 0 {
			return 1 << 20
		}
		return uint64(n)
	}
	err := w.maps.settings(func(set, timer func(string, uint64)) {
		for name, d := range timerValues(gateTimers) {
			timer(name, uint64(d))
		}
		set("max_flows", limit(s.limits.Flows))
		set("max_fresh", limit(s.limits.Fresh))
		set("max_per_host", limit(s.limits.PerHost))
		set("max_forwarded", limit(s.limits.Forwarded))
		adopt := uint64(0)
		if s.adopt {
			adopt = 1 << 62
		}
		set("adopt_until", adopt)
	})
	if err != nil {
		return err
	}
	w.model.Configure(s.model(w.ports))
	return w.learnSlots()
}

// slotAt is where struct tg_member has the slot: inner maps keep no types.
const slotAt = 4

// learnSlots finds the counters of the interfaces.
func (w *world) learnSlots() error {
	var word uint64
	if err := w.maps.maps["tg_control"].Lookup(uint32(0), &word); err != nil {
		return err
	}
	var inner *ebpf.Map
	if err := w.maps.maps["tg_members"].Lookup(uint32(word&1), &inner); err != nil {
		return err
	}
	defer inner.Close()
	for _, z := range gateZones {
		v, err := inner.LookupBytes(uint32(z.ifindex))
		if err != nil || v == nil {
			return fmt.Errorf("interface %d is no member: %w", z.ifindex, err)
		}
		w.slots[z.ifindex] = binary.NativeEndian.Uint32(v[slotAt:])
	}
	clear(w.counted)
	for _, slot := range w.slots {
		for dir := range uint32(2) {
			if _, err := w.reasons(slot*2 + dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// reasons reads the counters of one interface and direction, and says what was
// counted since the last time.
func (w *world) reasons(key uint32) ([]string, error) {
	v, err := w.maps.maps["tg_seen"].LookupBytes(key)
	if err != nil {
		return nil, err
	}
	f := w.maps.structs["tg_member_count"]["reasons"]
	size := (int(w.maps.maps["tg_seen"].ValueSize()) + 7) &^ 7
	n := int(f.size / 8)
	sums := make([]uint64, n)
	for ; len(v) >= size; v = v[size:] {
		for i := range n {
			sums[i] += binary.NativeEndian.Uint64(v[int(f.at)+8*i:])
		}
	}
	var changed []string
	if before := w.counted[key]; before != nil {
		for i, sum := range sums {
			for range sum - before[i] {
				changed = append(changed, w.maps.reasons[i])
			}
		}
	}
	w.counted[key] = sums
	return changed, nil
}

var contextSize = binary.Size(skb{})

// run gives a frame to a program: out is 0 for ingress. last: it goes no further,
// so that the program can be run by itself and its code looked at.
func (w *world) run(in, out int, frame []byte, last bool) (did model.Outcome, err error) {
	name, ifindex, dir := "tap_in", in, uint32(0)
	if out != 0 {
		name, ifindex, dir = "tap_out", out, 1
	}
	const ingressIfindexAt, ifindexAt = 36, 40
	ctx := make([]byte, contextSize)
	binary.NativeEndian.PutUint32(ctx[ifindexAt:], uint32(ifindex))
	if out != 0 {
		binary.NativeEndian.PutUint32(ctx[ingressIfindexAt:], uint32(in))
	}
	opts := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: ctx}
	w.runs++
	var code int32
	if last && out == 0 {
		var n uint32
		n, err = w.programs[name].Run(opts)
		code = int32(n)
	} else {
		code, w.tcIndex, err = w.relay.run(out != 0, w.tcIndex, opts)
	}
	if err != nil {
		return did, fmt.Errorf("run %s: %w", name, err)
	}
	counted, err := w.reasons(w.slots[ifindex]*2 + dir)
	if err != nil {
		return did, err
	}
	if len(counted) != 1 {
		return did, fmt.Errorf("%s counts %q for one packet", name, counted)
	}
	did = model.Outcome{Reason: counted[0], Frame: opts.DataOut}
	w.did[did.Reason]++
	want := next
	const redirect = 7
	switch {
	case strings.HasPrefix(did.Reason, "drop_"):
		did.Verdict, want = model.Drop, shot
		// What is refused for want of room or ports is answered, and so turned round.
		if did.Reason == "drop_no_port" || did.Reason == "drop_table_full" {
			return did, nil
		}
	case did.Reason == "pass_hairpin":
		did.Verdict, want = model.Redirect, redirect
	}
	if (last || out != 0) && code != want {
		return did, fmt.Errorf("%s returns %d for %s", name, code, did.Reason)
	}
	return did, nil
}

// step runs one packet at one hook through both.
func (w *world) step(in, out int, frame []byte, last bool) (model.Outcome, error) {
	before := bytes.Clone(frame)
	did, err := w.run(in, out, frame, last)
	hook := fmt.Sprintf("%s ingress", ifnames[in])
	if out != 0 {
		hook = fmt.Sprintf("%s egress from %s", ifnames[out], ifnames[in])
	}
	w.note("%s: %s -> %s %s %s", hook, show(before), did.Verdict, did.Reason, showAfter(did))
	if err != nil {
		return did, err
	}
	if err := w.model.Step(w.now(), in, out, before, did); err != nil {
		return did, fmt.Errorf("%s of %s: %w", hook, show(before), err)
	}
	return did, nil
}

func showAfter(did model.Outcome) string {
	if did.Verdict == model.Drop {
		return ""
	}
	return show(did.Frame)
}

func show(frame []byte) (text string) {
	defer func() {
		if recover() != nil {
			text = fmt.Sprintf("%x", frame)
		}
	}()
	h := hear(frame)
	text = fmt.Sprintf("[%d %s:%d > %s:%d", h.proto, h.src, h.sport, h.dst, h.dport)
	if h.proto == tcp {
		for i, c := range "FSRPA" {
			if h.flags&(1<<i) != 0 {
				text += string(c)
			}
		}
	}
	if h.failure() {
		l4 := 20
		if h.src.Is6() {
			l4 = 40
		} else {
			l4 = int(h.ip[0]&15) * 4
		}
		text += fmt.Sprintf(" type %d about %s", h.kind, show(append(make([]byte, 14), h.ip[l4+8:]...)))
	}
	return text + fmt.Sprintf(" len %d]", len(frame))
}

// route says by which interface the kernel sends a frame; 0: to itself, or nowhere.
func (w *world) route(frame []byte) int {
	h := hear(frame)
	dst := h.dst
	if h.src.IsUnspecified() || h.src.IsLinkLocalUnicast() {
		return 0
	}
	for _, z := range gateZones {
		for _, n := range z.nets {
			if n.Contains(dst) && dst != n.Addr().Next() {
				return z.ifindex
			}
		}
	}
	if dst == outsideIP || contains(pool, dst) || contains(pool6, dst) {
		return 0
	}
	return external
}

func contains[T comparable](list []T, x T) bool {
	for _, y := range list {
		if x == y {
			return true
		}
	}
	return false
}

// send has a host on an interface send a frame, and carries it as far as it goes.
func (w *world) send(in int, frame []byte) error {
	// Whatever a peer's programs left there; and some the host's firewall drops.
	w.tcIndex = pick(w.dice, []uint16{0, 0, 0x7467, 1})
	last := w.chance(6)
	did, err := w.step(in, 0, frame, last)
	if err != nil || did.Verdict == model.Drop || last {
		return err
	}
	frame = did.Frame
	if did.Verdict == model.Pass {
		if ttlOf(frame) <= 1 {
			return nil
		}
	}
	out := w.route(frame)
	if out == 0 {
		return nil
	}
	if did.Verdict == model.Pass {
		frame = aged(frame)
	}
	return w.leave(in, out, frame)
}

// leave is a frame at the egress hook; in is 0 if it is the gateway's own.
func (w *world) leave(in, out int, frame []byte) error {
	if in == 0 {
		w.tcIndex = 0
	}
	did, err := w.step(in, out, frame, true)
	if err != nil || did.Verdict == model.Drop {
		return err
	}
	h := hear(did.Frame)
	if out == external {
		w.out = remember(w.out, h)
	} else {
		w.in = remember(w.in, h)
	}
	return nil
}

func remember[T any](list []T, x T) []T {
	const most = 48
	if len(list) == most {
		list = append(list[:0], list[1:]...)
	}
	return append(list, x)
}

// jump lets time go by.
func (w *world) jump(d time.Duration) error {
	w.note("%v go by", d)
	w.offset += int64(d)
	return w.maps.pass(uint64(d))
}

// settle sees to it that nothing expires while a sweep is under way, or soon after.
func (w *world) settle() error {
	const margin = 3 * time.Second
	for {
		now := w.now()
		end := w.model.NextEnd(now - int64(margin)/10)
		if end == 0 || end-now > int64(margin) {
			return nil
		}
		if err := w.jump(time.Duration(end-now) + margin/10); err != nil {
			return err
		}
	}
}

// sweep takes away what has expired, as any command does.
func (w *world) sweep() error {
	w.note("sweep")
	w.model.Expire(w.now())
	if err := w.sweepOnce(); err != nil {
		return err
	}
	// A flow lies for a second before it goes.
	w.offset += int64(1100 * time.Millisecond)
	if err := w.maps.pass(uint64(1100 * time.Millisecond)); err != nil {
		return err
	}
	if err := w.sweepOnce(); err != nil {
		return err
	}
	w.model.Sweep(w.now())
	return nil
}

// sweepOnce runs the program until it has gone through all queues.
func (w *world) sweepOnce() error {
	for range 64 {
		looked, err := w.programs["sweep"].Run(&ebpf.RunOptions{Data: make([]byte, 64)})
		if err != nil {
			return fmt.Errorf("run sweep: %w", err)
		}
		if looked == 0 {
			return nil
		}
	}
	return nil
}

// flush ends the flows that match, as "flows flush" does.
func (w *world) flush(which func(in, out model.Tuple) bool) error {
	n := 0
	for out, f := range w.model.Flows() {
		if f.Flushed || !which(f.Inside, out) {
			continue
		}
		did, err := w.programs["flush"].Run(&ebpf.RunOptions{Data: append(make([]byte, 14), w.maps.key(out)...)})
		if err != nil {
			return fmt.Errorf("run flush: %w", err)
		}
		if did != 1 {
			return fmt.Errorf("flush of %v returns %d", out, did)
		}
		n++
	}
	w.note("flush %d flows", n)
	if got := w.model.Flush(which); got != n {
		return fmt.Errorf("the model flushes %d flows, the program %d", got, n)
	}
	return nil
}
