package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/ipv4"

	"tapgate/loader"
	"tapgate/test/lab"
)

const (
	demoPort     = 3389 // of the forward in demoConfig
	demoQuestion = "is anybody in?"
	demoAnswer   = "the server is"
	// demoDropped is how the dmz's drops are called in a status.
	demoDropped = "drop_from_dmz"
)

// forward has the host outside use the forward and shows who talked to whom. The
// connection stays open until closed is called.
func (d *demo) forward(ctx context.Context) (closed func(), err error) {
	server, outside := d.lab.Servers[0], d.lab.Outside[0]
	asked := netip.AddrPortFrom(d.lab.Gateway.Addr, demoPort)
	if err := d.print("\nThe host outside connects to %s and asks %q.\n", asked, demoQuestion); err != nil {
		return nil, err
	}
	var listener net.Listener
	err = server.Do(func() (err error) {
		listener, err = net.Listen("tcp4", netip.AddrPortFrom(server.Addr, demoPort).String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("demo: listen on the server: %w", err)
	}
	met := make(chan net.Conn, 1) // the client as the server met it
	go func() {
		defer close(met)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		met <- conn
		question := make([]byte, len(demoQuestion))
		if _, err := io.ReadFull(conn, question); err == nil && string(question) == demoQuestion {
			_, _ = io.WriteString(conn, demoAnswer) // the client tells if it did not come
		}
	}()
	conn, err := ask(ctx, outside, asked)
	_ = listener.Close()
	client := <-met // nil if none came
	closed = func() {
		for _, c := range []net.Conn{conn, client} {
			if c != nil {
				_ = c.Close() // both ends: what is between them may be gone
			}
		}
	}
	switch {
	case err != nil:
		err = fmt.Errorf("demo: the host outside gets no answer through the forward: %w", err)
	case client.RemoteAddr().String() != conn.LocalAddr().String():
		err = fmt.Errorf("demo: the server met %s, and the host outside was %s", client.RemoteAddr(), conn.LocalAddr())
	default:
		err = d.print("%s met %s and answered %q.\n", netip.AddrPortFrom(server.Addr, demoPort), client.RemoteAddr(), demoAnswer)
	}
	if err != nil {
		closed()
		return nil, err
	}
	return closed, nil
}

// ask connects from a host, asks the question and waits for the answer.
func ask(ctx context.Context, from *lab.Host, to netip.AddrPort) (conn net.Conn, err error) {
	err = from.Do(func() (err error) {
		conn, err = (&net.Dialer{Timeout: demoPatience}).DialContext(ctx, "tcp4", to.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	answer := make([]byte, len(demoAnswer))
	err = conn.SetDeadline(time.Now().Add(demoPatience))
	if err == nil {
		_, err = io.WriteString(conn, demoQuestion)
	}
	if err == nil {
		_, err = io.ReadFull(conn, answer)
	}
	if err == nil && string(answer) != demoAnswer {
		err = fmt.Errorf("got %q", answer)
	}
	return conn, err
}

// escape has the sensor try to reach the server and the host outside, and judges.
func (d *demo) escape(ctx context.Context) error {
	server, outside, sensor := d.lab.Servers[0], d.lab.Outside[0], d.lab.Sensor
	if err := d.print("\nThe sensor pings the server and the host outside, as one does who has broken into it.\n"); err != nil {
		return err
	}
	before, err := d.droppedFromSensor()
	if err != nil {
		return err
	}
	tries := []*lab.Host{server, outside}
	var captures []*lab.Capture
	for _, h := range tries {
		c, err := h.Capture("eth0", lab.Incoming)
		if err != nil {
			return err
		}
		defer context.AfterFunc(ctx, func() { _, _ = c.Stop() })()
		captures = append(captures, c)
	}
	// No answer is to be expected: what ends the wait is that the drops are counted.
	pinging, stop := context.WithCancel(ctx)
	defer stop()
	replies := make(chan int)
	for _, h := range tries {
		go func() {
			n, _ := sensor.Ping(pinging, h.Addr, 1) // an error is no answer either
			replies <- n
		}()
	}
	dropped, err := d.waitDropped(ctx, before, uint64(len(tries)))
	stop()
	answered := 0
	for range tries {
		answered += <-replies
	}
	if err != nil {
		return err
	}
	var errs []error
	for i, c := range captures {
		frames, err := c.Stop()
		if err != nil {
			return err
		}
		for _, f := range frames {
			if src, ok := sourceOf(f); ok && src == sensor.Addr {
				errs = append(errs, fmt.Errorf("demo: %s got a packet of the sensor's", tries[i].Addr))
			}
		}
	}
	if answered > 0 {
		errs = append(errs, fmt.Errorf("demo: the sensor got %d answers", answered))
	}
	if dropped < uint64(len(tries)) {
		errs = append(errs, fmt.Errorf("demo: %d of the sensor's %d packets are counted as %s", dropped, len(tries), demoDropped))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return d.print("None of it arrived: the gateway dropped %d packets of the sensor's (%s).\n", dropped, demoDropped)
}

// waitDropped waits until the gateway has counted that many drops more.
func (d *demo) waitDropped(ctx context.Context, before, more uint64) (dropped uint64, err error) {
	for deadline := time.Now().Add(demoPatience); ; {
		n, err := d.droppedFromSensor()
		if err != nil || n-before >= more || time.Now().After(deadline) {
			return n - before, err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (d *demo) droppedFromSensor() (n uint64, err error) {
	s, err := d.status()
	for _, m := range s.Members {
		if m.Role == loader.RoleDMZ && m.Ingress != nil {
			n += m.Ingress.Reasons[demoDropped]
		}
	}
	return n, err
}

// sourceOf is the sender of an IPv4 packet.
func sourceOf(f lab.Frame) (netip.Addr, bool) {
	if etherType, _ := f.EtherType(); etherType != 0x0800 {
		return netip.Addr{}, false
	}
	header, err := ipv4.ParseHeader(f.Payload())
	if err != nil {
		return netip.Addr{}, false
	}
	return netip.AddrFromSlice(header.Src.To4())
}
