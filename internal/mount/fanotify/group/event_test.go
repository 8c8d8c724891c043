package group

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func event(mask uint64, fd, pid int32, records ...[]byte) []byte {
	b := make([]byte, eventBytes)
	b[4] = unix.FANOTIFY_METADATA_VERSION
	binary.NativeEndian.PutUint16(b[6:], eventBytes)
	binary.NativeEndian.PutUint64(b[8:], mask)
	binary.NativeEndian.PutUint32(b[16:], uint32(fd))
	binary.NativeEndian.PutUint32(b[20:], uint32(pid))
	for _, r := range records {
		b = append(b, r...)
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

func record(kind byte, size int, off, count uint64) []byte {
	b := make([]byte, max(size, recordHeaderBytes))
	b[0] = kind
	binary.NativeEndian.PutUint16(b[2:], uint16(size))
	if size >= rangeRecordBytes {
		binary.NativeEndian.PutUint64(b[8:], off)
		binary.NativeEndian.PutUint64(b[16:], count)
	}
	return b
}

func TestParseEvents(t *testing.T) {
	const kind = unix.FAN_EVENT_INFO_TYPE_RANGE
	badVersion := event(unix.FAN_PRE_ACCESS, 1, 2)
	badVersion[4]++
	longEvent := event(unix.FAN_PRE_ACCESS, 1, 2)
	binary.NativeEndian.PutUint32(longEvent, eventBytes+1)
	zeroLength := event(unix.FAN_PRE_ACCESS, 1, 2)
	binary.NativeEndian.PutUint32(zeroLength, 0)
	one := event(unix.FAN_PRE_ACCESS, 7, 42, record(kind, rangeRecordBytes, 4096, 8192))
	tests := []struct {
		name string
		in   []byte
		want []Event
		bad  bool
	}{
		{name: "empty"},
		{name: "range", in: one, want: []Event{{FD: 7, PID: 42, HasRange: true, Off: 4096, Count: 8192}}},
		{name: "two", in: append(append([]byte(nil), one...), event(unix.FAN_PRE_ACCESS, 8, 1)...),
			want: []Event{{FD: 7, PID: 42, HasRange: true, Off: 4096, Count: 8192}, {FD: 8, PID: 1}}},
		{name: "another record first", in: event(unix.FAN_PRE_ACCESS, 7, 42, record(unix.FAN_EVENT_INFO_TYPE_PIDFD, 8, 0, 0), record(kind, rangeRecordBytes, 1, 2)),
			want: []Event{{FD: 7, PID: 42, HasRange: true, Off: 1, Count: 2}}},
		{name: "overflow", in: event(unix.FAN_Q_OVERFLOW, -1, 0), want: []Event{{FD: -1, Overflow: true}}},
		{name: "negative offset", in: event(unix.FAN_PRE_ACCESS, 7, 0, record(kind, rangeRecordBytes, 1<<63, 1)), want: []Event{{FD: 7}}},
		{name: "sum overflows", in: event(unix.FAN_PRE_ACCESS, 7, 0, record(kind, rangeRecordBytes, 2, math.MaxInt64-1)), want: []Event{{FD: 7}}},
		{name: "range record too short", in: event(unix.FAN_PRE_ACCESS, 7, 0, record(kind, 16, 0, 0)), want: []Event{{FD: 7}}},
		{name: "record of no length", in: event(unix.FAN_PRE_ACCESS, 7, 0, record(kind, 0, 0, 0)), want: []Event{{FD: 7}}},
		{name: "cut", in: append(append([]byte(nil), one...), one[:20]...), want: []Event{{FD: 7, PID: 42, HasRange: true, Off: 4096, Count: 8192}}, bad: true},
		{name: "version", in: badVersion, bad: true},
		{name: "too long", in: longEvent, bad: true},
		{name: "no length", in: zeroLength, bad: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var got []Event
			err := ParseEvents(test.in, func(e Event) { got = append(got, e) })
			if (err != nil) != test.bad {
				t.Errorf("error %v, want one: %v", err, test.bad)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzParseEvents(f *testing.F) {
	f.Add(event(unix.FAN_PRE_ACCESS, 7, 42, record(unix.FAN_EVENT_INFO_TYPE_RANGE, rangeRecordBytes, 4096, 8192)))
	f.Add(event(unix.FAN_Q_OVERFLOW, -1, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		events := 0
		_ = ParseEvents(b, func(e Event) {
			events++
			if e.HasRange && (e.Off < 0 || e.Count < 0 || e.Off+e.Count < 0) {
				t.Errorf("range %d+%d", e.Off, e.Count)
			}
		})
		if events > len(b)/eventBytes {
			t.Errorf("%d events in %d bytes", events, len(b))
		}
	})
}

func TestLimitFiles(t *testing.T) {
	if err := LimitFiles(); err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur > MaxFiles {
		t.Errorf("limit %d, want at most %d", limit.Cur, MaxFiles)
	}
}
