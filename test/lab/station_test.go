package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A station gets what is sent to its addresses, of each family, and nobody answers.
func TestStation(t *testing.T) {
	l := ForTest(t, Servers(2))
	s, err := l.Servers[0].Station(50)
	if err != nil {
		t.Fatal(err)
	}
	other, err := l.Servers[0].Station(51)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if n, err := l.Gateway.Ping(ctx, s.Addr, 1); err != nil || n != 0 {
		t.Errorf("%d pings of a station answered, %v", n, err)
	}
	if n, err := l.Gateway.Ping(ctx, s.Addr6, 1); err != nil || n != 0 {
		t.Errorf("%d pings of a station answered, %v", n, err)
	}
	frames, err := s.WaitFor(func(frames []Frame) bool { return len(frames) >= 2 }, settleTime)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []uint16{unix.ETH_P_IP, unix.ETH_P_IPV6} {
		if kind, _ := frames[i].EtherType(); kind != want {
			t.Errorf("frame %d is of type %#x, want %#x", i, kind, want)
		}
	}
	if n := len(other.Frames()); n > 0 {
		t.Errorf("another station got %d frames", n)
	}
	// What it sends is there as it was.
	at, err := l.Gateway.Capture("eth3", Incoming)
	if err != nil {
		t.Fatal(err)
	}
	frame := append(bytes.Clone(s.Gateway), s.MAC...)
	frame = binary.BigEndian.AppendUint16(frame, 0x88b5)
	frame = append(frame, bytes.Repeat([]byte{7}, 50)...)
	if err := s.Send(frame); err != nil {
		t.Fatal(err)
	}
	is := func(f Frame) bool { return bytes.Equal(f.Data, frame) }
	if _, err := at.WaitFor(func(frames []Frame) bool { return len(Select(frames, is)) == 1 }, settleTime); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := l.Sensor.Station(300); err == nil {
		t.Error("a station whose number is no part of an address")
	}
}
