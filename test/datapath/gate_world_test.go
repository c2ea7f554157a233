package datapath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"tapgate/test/model"
)

// world is the gateway's programs on their stage, the model beside them, and the
// hosts around them.
type world struct {
	*dice
	gateway     *gateway
	stage       *stage
	generations *generations
	maps        *gateMaps
	model       *model.Model

	clock   int64       // boot time, ns, as the programs read it
	came    int         // interface of the packet at hand
	tcIndex uint16      // of it
	slots   map[int]int // counters of an interface
	counted map[int][]byte
	ctx     []byte
	frame   []byte // buffers
	made    []byte

	scene   *scene
	fast    bool   // known flows go past the stack
	packets int    // that hosts, or the gateway itself, have sent
	ends    uint64 // of flows, as the program counts them
	steps   int    // of these and of what became of them, one for each hook
	did     map[string]int
	strays  uint64 // halves on their way out, at the last comparison

	insidePorts, remotePorts []uint16 // that this sequence uses
	flowProtos               []uint8

	noting  bool
	careful bool // compares after each packet
	log     []string
	in, out []heard // what hosts inside and remotes got lately
	got     *heard  // what somebody got last
	sent    []place // what hosts inside sent lately
}

// place is a packet and the interface that it came in by.
type place struct {
	talk
	in int
}

const logged = 200

func (w *world) note(format string, args ...any) {
	if !w.noting {
		return
	}
	if len(w.log) == logged {
		w.log = append(w.log[:0], w.log[1:]...)
	}
	w.log = append(w.log, fmt.Sprintf("%d: ", w.packets)+fmt.Sprintf(format, args...))
}

// bootTime is when a world begins: late enough for all that is said to be long ago.
const bootTime = int64(1e15)

// newWorld is one with an empty flow table.
func newWorld(g *gateway) (w *world, err error) {
	w = &world{
		gateway: g, clock: bootTime, counted: map[int][]byte{}, did: map[string]int{},
		ctx: make([]byte, binary.Size(skb{})), made: make([]byte, 4096),
	}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.stage, err = newStage(g.tapIn); err != nil {
		return w, err
	}
	if w.generations, err = newGenerations(w.stage); err != nil {
		return w, err
	}
	if w.maps, err = newGateMaps(w.stage); err != nil {
		return w, err
	}
	w.model = model.New(model.Config{})
	w.model.Keep = true
	w.model.Evicted = w.maps.evicted
	w.model.Unbound = w.maps.unbound
	return w, nil
}

func (w *world) close() {
	if w.generations != nil {
		w.generations.close()
	}
	if w.stage != nil {
		_ = w.stage.close()
	}
}

// reset begins anew with an empty table: nothing that follows depends on what was before.
func (w *world) reset() error {
	w.in, w.out, w.sent, w.log = nil, nil, nil, nil
	w.model.Reset()
	var err error
	for _, name := range []string{"tg_own_peers", "tg_fragments", "tg_ip_ids", "tg_remote_rates"} {
		err = errors.Join(err, w.maps.forget(name))
	}
	return err
}

// apply puts a scene in force, with or without the fast path. Flows stay.
func (w *world) apply() (err error) {
	sc := pick(w.dice, w.gateway.scenes)
	w.fast = w.chance(50)
	w.note("apply %s, fast %v", sc.scenario.name, w.fast)
	w.scene = sc
	if err := w.generations.put(sc, w.setting(sc)); err != nil {
		return err
	}
	cfg := sc.scenario.model(w.gateway.ports)
	cfg.Fast, cfg.Way, cfg.MACs = w.fast, w.gateway.way, w.gateway.macs
	w.model.Configure(cfg)
	if w.slots, err = sc.interfaceSlots(w.maps.structs["tg_member"]); err != nil {
		return err
	}
	w.maps.scope = sc.zoneOf(w.maps.structs["tg_member"], external)
	clear(w.counted)
	return nil
}

// setting is what the loader has set, with the scenario's limits and timers.
func (w *world) setting(sc *scene) []byte {
	value := append([]byte{}, sc.setting...)
	s := w.maps.structs["tg_setting"]
	set := func(name string, v uint64) { s[name].write(value, v) }
	limit := func(n int) uint64 {
		if n == 0 {
			return 1 << 20
		}
		return uint64(n)
	}
	for name, d := range timerValues(sc.scenario.timers()) {
		field{s["timers"].at + 8*uint32(w.maps.timers[name]), 8}.write(value, uint64(d))
	}
	limits := sc.scenario.limits
	set("max_flows", limit(limits.Flows))
	set("max_fresh", limit(limits.Fresh))
	if limits.Fresh == 0 {
		set("max_fresh", 2*limit(limits.Forwarded)) // what is left to inside hosts
	}
	set("max_per_host", limit(limits.PerHost))
	set("max_forwarded", limit(limits.Forwarded))
	set("max_fresh_host", limit(limits.FreshHost))
	set("max_recycled", limit(limits.Flows/8))
	set("serial", w.generations.serial)
	set("fast", 0)
	if w.fast {
		set("fast", 1)
	}
	set("adopt_until", 0)
	if sc.scenario.adopt {
		set("adopt_until", 1<<62)
	}
	return value
}

// Where struct __sk_buff has cb.
const cbAt, cbEnd = 48, 48 + 5*4

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
	if dst == outsideIP || dst == outsideIP6 || contains(pool, dst) || contains(pool6, dst) {
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
	w.packets++
	w.came = in
	if mac := w.gateway.macs[in]; !w.chance(2) { // else for somebody else
		copy(frame, mac[:])
	}
	w.tcIndex = pick(w.dice, []uint16{0, 0, 0x7467, 1})
	last := w.chance(6)
	did, err := w.step(in, 0, frame)
	if err != nil || did.Verdict == model.Drop || last {
		return err
	}
	frame = did.Frame
	if did.Reason == "pass_fast" {
		return w.leaveFast(frame)
	}
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
		frame = aged(trimmed(frame))
	}
	return w.leave(in, out, frame)
}

// sendRaw is send for what a kernel would not route.
func (w *world) sendRaw(in int, frame []byte) error {
	w.packets++
	w.tcIndex = 0
	_, err := w.step(in, 0, frame)
	return err
}

// own is a frame of the gateway itself.
func (w *world) sendOwn(out int, frame []byte) error {
	w.packets++
	w.tcIndex = 0
	return w.leave(0, out, frame)
}

// leaveFast is a frame that went past the stack: the egress program knows it, and leaves it alone.
func (w *world) leaveFast(frame []byte) error {
	out := w.route(frame)
	frame = append([]byte{}, frame...)
	copy(w.ctx[cbAt:cbEnd], w.stage.cb)
	did, err := w.run(w.came, out, frame)
	if err != nil {
		return err
	}
	if did.Reason != "pass_fast" || !bytes.Equal(did.Frame, frame) {
		return fmt.Errorf("at egress, %s of what went past the stack: %x, was %x", did.Reason, did.Frame, frame)
	}
	w.hear(out, did.Frame)
	return nil
}

// leave is a frame at the egress hook; in is 0 if it is the gateway's own.
func (w *world) leave(in, out int, frame []byte) error {
	did, err := w.step(in, out, frame)
	if err != nil || did.Verdict == model.Drop {
		return err
	}
	w.hear(out, did.Frame)
	return nil
}

// hear is what somebody gets.
func (w *world) hear(out int, frame []byte) {
	h := hear(append([]byte{}, frame...))
	w.got = &h
	if out == external {
		w.out = remember(w.out, h)
	} else {
		w.in = remember(w.in, h)
	}
}

func remember[T any](list []T, x T) []T {
	const most = 48
	if len(list) == most {
		list = append(list[:0], list[1:]...)
	}
	return append(list, x)
}
