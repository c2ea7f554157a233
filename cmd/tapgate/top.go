package main

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tapgate/loader"
)

const (
	topInterval    = 2 * time.Second
	topIntervalMin = 200 * time.Millisecond
	topIntervalMax = time.Minute
	topBatchFlows  = 10
	topBatchWidth  = 80
)

var topOrders = []loader.FlowOrder{loader.ByBytes, loader.ByPackets, loader.ByTotalBytes, loader.ByTotalPackets}

func newTopCommand(e *env, g *globals) *cobra.Command {
	interval := topInterval
	var once bool
	var batch int
	var order string
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show live rates of interfaces, mirrors and the heaviest flows",
		Long: `Shows in the terminal, again and again, what each interface, mirror and target does
a second, why packets are not copied, and the heaviest flows.

Keys: s sorts flows by the next of bytes and packets a second, bytes and packets
in all; p or space pauses; + and - change the interval; q quits.`,
		Example: `  tapgate top
  tapgate top --interval 500ms --sort packets
  tapgate top --once | head -20`,
		Args: noArgs,
		RunE: e.privileged(func(cmd *cobra.Command, _ []string) error {
			given := cmd.Flags().Changed
			switch {
			case interval < topIntervalMin || interval > topIntervalMax:
				return usagef("--interval %v: must be from %v to %v", interval, topIntervalMin, topIntervalMax)
			case given("batch") && batch < 1:
				return usagef("--batch %d: must be above zero", batch)
			}
			i := slices.Index(topOrders, loader.FlowOrder(order))
			if i < 0 {
				return usagef("--sort %q: must be one of %s%s", order, topOrderNames(", "), didYouMean(order, topOrderList()))
			}
			if once {
				batch = 1
			}
			t := &top{e: e, g: g, interval: interval, order: i, meter: loader.NewFlowMeter()}
			if batch > 0 {
				return t.batch(batch)
			}
			screen, err := openScreen(e.stdin, e.stdout)
			if err != nil {
				return err
			}
			return errors.Join(t.live(screen), screen.close())
		}),
	}
	p := cmd.Flags()
	p.DurationVar(&interval, "interval", interval, "time between two looks")
	p.StringVar(&order, "sort", string(loader.ByBytes), "sort flows by `WHAT`: "+topOrderNames(", "))
	p.BoolVar(&once, "once", false, "print one look and end, as for a pipe")
	p.IntVar(&batch, "batch", 0, "print `N` looks and end")
	p.SortFlags = false
	cmd.MarkFlagsMutuallyExclusive("once", "batch")
	_ = cmd.RegisterFlagCompletionFunc("sort", completeWords(topOrderList()...))
	return cmd
}

func topOrderList() (names []string) {
	for _, o := range topOrders {
		names = append(names, string(o))
	}
	return names
}

func topOrderNames(between string) string { return strings.Join(topOrderList(), between) }

// top looks again and again.
type top struct {
	e        *env
	g        *globals
	interval time.Duration
	order    int // index into topOrders
	meter    *loader.FlowMeter
	paused   bool

	was, now *topLook // nil before the first looks
	err      error    // of the last look
}

// topLook is what one look has seen.
type topLook struct {
	at     time.Time
	status *loader.Status
	flows  []loader.FlowRate
}

// look reads everything, and as many flows as there may be room for.
func (t *top) look(flows int) error {
	next := &topLook{}
	t.err = t.e.read(t.g, func(gw gateway) (err error) {
		next.at = time.Now() // behind the wait for a lock
		if next.status, err = gw.Status(); err != nil {
			return err
		}
		next.flows, err = gw.HeaviestFlows(t.meter, flows, topOrders[t.order])
		return err
	})
	if t.err == nil {
		t.was, t.now = t.now, next
	}
	return t.err
}

// batch prints so many looks. Rates need one before.
func (t *top) batch(n int) error {
	if err := t.look(0); err != nil {
		return err
	}
	for i := range n {
		time.Sleep(t.interval)
		if err := t.look(topBatchFlows); err != nil {
			return err
		}
		text := strings.Join(t.lines(topBatchWidth, 0), "\n") + "\n"
		if i > 0 {
			text = "\n" + text
		}
		if err := t.e.write(text); err != nil {
			return err
		}
	}
	return nil
}

// live draws until a key ends it. What goes wrong is shown, and may get right again.
func (t *top) live(s *screen) error {
	if err := t.look(0); err != nil {
		return err // there is nothing to look at
	}
	ticks := time.NewTimer(topIntervalMin) // the first rates soon
	defer ticks.Stop()
	for {
		width, height := s.size()
		if err := s.draw(t.lines(width, height)); err != nil {
			return err
		}
		select {
		case <-s.resized:
		case <-s.ended:
			return nil
		case key := <-s.keys:
			before := t.interval
			if t.key(key) {
				return nil
			}
			if t.interval != before {
				ticks.Reset(t.interval)
			}
		case <-ticks.C:
			ticks.Reset(t.interval)
			if !t.paused {
				_ = t.look(height) // told by lines
			}
		}
	}
}

// key does what a key asks for, and says whether to end.
func (t *top) key(k byte) (quit bool) {
	switch k {
	case 'q', 'Q', ctrlC:
		return true
	case 'p', 'P', ' ':
		t.paused = !t.paused
	case 's', 'S':
		t.order = (t.order + 1) % len(topOrders)
		t.sort()
	case '+':
		t.interval = min(2*t.interval, topIntervalMax)
	case '-':
		t.interval = max(t.interval/2, topIntervalMin)
	}
	return false
}

// sort puts the flows at hand in order; the next look may find others.
func (t *top) sort() {
	if t.now == nil {
		return
	}
	weight := func(f loader.FlowRate) float64 {
		switch topOrders[t.order] {
		case loader.ByPackets:
			return f.PacketRate
		case loader.ByTotalBytes:
			return float64(f.Bytes)
		case loader.ByTotalPackets:
			return float64(f.Packets)
		}
		return f.ByteRate
	}
	slices.SortStableFunc(t.now.flows, func(a, b loader.FlowRate) int {
		switch d := weight(b) - weight(a); {
		case d < 0:
			return -1
		case d > 0:
			return 1
		}
		return 0
	})
}
