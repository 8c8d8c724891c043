package group

import (
	"encoding/binary"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// Layout of what read(2) on a group returns, in the machine's byte order:
//
//	event:  event_len u32, vers u8, reserved u8, metadata_len u16, mask u64, fd s32, pid s32, then info records up to event_len
//	record: info_type u8, pad u8, len u16, then for FAN_EVENT_INFO_TYPE_RANGE: pad u32, offset u64, count u64
const (
	eventBytes        = unix.FAN_EVENT_METADATA_LEN
	recordHeaderBytes = 4
	rangeRecordBytes  = 24

	// ReadBytes is a good size for the buffer of a read: some 300 events.
	ReadBytes = 16 << 10
)

// Event is one pre-content event.
type Event struct {
	// FD is the event's descriptor, open in the process that read it and to be closed by it. Negative: none.
	FD int32
	// PID is the process that reads the file.
	PID int32
	// Overflow says that the queue overflowed: events were lost and their readers were let through.
	Overflow bool
	// HasRange says whether the kernel told which part of the file is about to be read.
	HasRange bool
	// Off and Count are the range in bytes; Off+Count does not overflow. Valid with HasRange.
	Off, Count int64
}

// ParseEvents calls fn for each event in b, which is what one read returned. An error says that b is not what this
// code understands; the events before the broken one have been handed to fn by then.
func ParseEvents(b []byte, fn func(Event)) error {
	for off := 0; off < len(b); {
		rest := b[off:]
		if len(rest) < eventBytes {
			return fmt.Errorf("parse fanotify event at %d: %d bytes left of %d", off, len(rest), eventBytes)
		}
		size, head := int64(binary.NativeEndian.Uint32(rest)), int(binary.NativeEndian.Uint16(rest[6:]))
		if size > int64(len(rest)) || head < eventBytes || int64(head) > size {
			return fmt.Errorf("parse fanotify event at %d: length %d and header %d in %d bytes", off, size, head, len(rest))
		}
		if rest[4] != unix.FANOTIFY_METADATA_VERSION {
			return fmt.Errorf("parse fanotify event at %d: version %d, want %d", off, rest[4], unix.FANOTIFY_METADATA_VERSION)
		}
		event := Event{
			Overflow: binary.NativeEndian.Uint64(rest[8:])&unix.FAN_Q_OVERFLOW != 0,
			FD:       int32(binary.NativeEndian.Uint32(rest[16:])),
			PID:      int32(binary.NativeEndian.Uint32(rest[20:])),
		}
		event.Off, event.Count, event.HasRange = findRange(rest[head:size])
		fn(event)
		off += int(size)
	}
	return nil
}

// findRange looks for the range among info records. A broken record ends the search: an event without a range is
// denied, which is right for one that cannot be understood, and it still has a descriptor to answer.
func findRange(b []byte) (off, count int64, ok bool) {
	for len(b) >= recordHeaderBytes {
		size := int(binary.NativeEndian.Uint16(b[2:]))
		if size < recordHeaderBytes || size > len(b) {
			return 0, 0, false
		}
		if b[0] == unix.FAN_EVENT_INFO_TYPE_RANGE && size >= rangeRecordBytes {
			start, n := binary.NativeEndian.Uint64(b[8:]), binary.NativeEndian.Uint64(b[16:])
			if start > math.MaxInt64 || n > math.MaxInt64-start {
				return 0, 0, false
			}
			return int64(start), int64(n), true
		}
		b = b[size:]
	}
	return 0, 0, false
}
