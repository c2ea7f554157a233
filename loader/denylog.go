package loader

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

// denyLog writes down what policies with "log: true" drop. The data plane bounds how
// much that is; when nobody reads, what comes first is kept until somebody does.
type denyLog struct {
	*knownNames
	log *slog.Logger
}

// follow reads the events of a state until the returned function is called, which
// waits for the last one.
func (d *denyLog) follow(dir string) (stop func(), err error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, mapsDir, tapgateMapTgEvents), nil)
	if err != nil {
		return nil, fmt.Errorf("open the log of denied packets: %w", err)
	}
	defer m.Close()
	r, err := ringbuf.NewReader(m)
	if err != nil {
		return nil, fmt.Errorf("open the log of denied packets: %w", err)
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			raw, err := r.Read()
			if errors.Is(err, ringbuf.ErrClosed) {
				return
			}
			var e tapgateTgEvent
			if err == nil {
				_, err = binary.Decode(raw.RawSample, binary.NativeEndian, &e)
			}
			if err != nil {
				d.log.Warn("the log of denied packets has ended", "error", err)
				return
			}
			d.write(&e)
		}
	})
	return func() {
		_ = r.Close()
		reading.Wait()
	}, nil
}

// write logs an event, with the time of the packet.
func (d *denyLog) write(e *tapgateTgEvent) {
	if !d.log.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	now := bootTime()
	line := slog.NewRecord(time.Now().Add(-time.Duration(now-min(now, e.When))), slog.LevelInfo, "denied", 0)
	line.AddAttrs(e.attrs(d.names(e.Policy))...)
	_ = d.log.Handler().Handle(context.Background(), line)
}

func (e *tapgateTgEvent) attrs(names *eventNames) (list []slog.Attr) {
	text := func(key, value string) {
		if value != "" {
			list = append(list, slog.String(key, value))
		}
	}
	text("policy", names.rules[e.Policy])
	text("reason", reasonNames()[tapgateTgReason(e.Reason)])
	end := func(zone, device string, ifindex uint32) {
		m, known := names.members[ifindex]
		if !known && ifindex != 0 {
			m.Interface = fmt.Sprintf("index %d", ifindex)
		}
		text(zone, m.Zone)
		text(device, m.Interface)
	}
	end("from", "in", e.IfindexIn)
	end("to", "out", e.IfindexOut)
	text("proto", flowProtoName(e.Tuple.Proto))
	address := func(key, port string, a [16]byte, n uint16) {
		text(key, netip.AddrFrom16(a).Unmap().String())
		if protoHasPorts(e.Tuple.Proto) {
			list = append(list, slog.Int(port, int(bigEndian(n))))
		}
	}
	address("src", "sport", e.Tuple.Src, e.Tuple.Sport)
	address("dst", "dport", e.Tuple.Dst, e.Tuple.Dport)
	return list
}
