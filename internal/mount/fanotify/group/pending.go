package group

import (
	"encoding/binary"
	"fmt"
	"math"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Pending is a table, in memory that outlives its process, of the events that a daemon has read and not answered: for each
// event's number the file and range it waits for. A daemon that takes the group over answers them when it has brought the
// range, so that a crash costs readers time and no errors. (To deny them all would do for most, because the kernel
// tries a failed read-ahead again; but that second try fails for good if the next daemon dies too.)
//
// What makes an answer by number safe:
//   - an entry is written after its event was read, and taken out before it is answered. So an entry that a dead process
//     left belongs to an event that nobody answered, and its number cannot have come back;
//   - Reserve occupies the numbers of all entries in the new process, or takes the entry out. So no event of the new process
//     has a number that is in the table, before the old one is answered;
//   - what was read and has no entry is denied by Sweep.
//
// Layout: a header page (8 bytes magic, u32 version, u32 bytes a slot), then MaxFiles slots, all in the machine's byte order.
type Pending struct {
	fd    int
	mem   []byte
	slots []slot
}

// slot is one entry. Its number is its position.
type slot struct {
	valid    uint32 // written last, cleared first
	tries    uint32 // how many daemons took it over
	since    int64  // when the event was read, in ns of CLOCK_MONOTONIC
	dev, ino uint64
	off, n   int64
}

const (
	pendingMagic      = "THAWPEND"
	pendingVersion    = 2
	pendingHeader     = 4096
	slotBytes         = int(unsafe.Sizeof(slot{}))
	pendingTableBytes = pendingHeader + MaxFiles*slotBytes
	// An event is taken over maxTries times, and as often as it may be in patience: should fetching its range be what kills
	// daemons, its reader gets EIO then.
	maxTries = 5
	patience = 30 * time.Second
)

// Stale is an event that a dead process left unanswered, and whose number is reserved here: FD is open, to be closed after
// the answer.
type Stale struct {
	FD       int32
	Dev, Ino uint64
	Off, N   int64
}

// NewPending makes an empty table.
func NewPending() (*Pending, error) {
	fd, err := unix.MemfdCreate("thaw-pending", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create table of pending events: %w", err)
	}
	header := binary.NativeEndian.AppendUint32([]byte(pendingMagic), pendingVersion)
	header = binary.NativeEndian.AppendUint32(header, uint32(slotBytes))
	if err = unix.Ftruncate(fd, int64(pendingTableBytes)); err == nil {
		_, err = unix.Pwrite(fd, header, 0)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("create table of pending events: %w", err)
	}
	return OpenPending(fd)
}

// OpenPending opens the table behind fd, which becomes the table's. It fails for one of another version of this program.
func OpenPending(fd int) (*Pending, error) {
	p, err := openPending(fd)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open table of pending events: %w", err)
	}
	return p, nil
}

func openPending(fd int) (*Pending, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Size != int64(pendingTableBytes) {
		return nil, fmt.Errorf("%d bytes, want %d", st.Size, pendingTableBytes)
	}
	mem, err := unix.Mmap(fd, 0, pendingTableBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	version, size := binary.NativeEndian.Uint32(mem[8:]), binary.NativeEndian.Uint32(mem[12:])
	magic := string(mem[:8])
	if magic != pendingMagic || version != pendingVersion || int(size) != slotBytes {
		_ = unix.Munmap(mem)
		return nil, fmt.Errorf("header %q, version %d, %d bytes a slot", magic, version, size)
	}
	slots := unsafe.Slice((*slot)(unsafe.Pointer(&mem[pendingHeader])), MaxFiles)
	return &Pending{fd: fd, mem: mem, slots: slots}, nil
}

// FD is the table's descriptor, to be handed to other processes.
func (p *Pending) FD() int { return p.fd }

// Close lets go of the table; what is in it stays for others.
func (p *Pending) Close() {
	_ = unix.Munmap(p.mem)
	unix.Close(p.fd)
	p.slots = nil
}

// Put enters the event with number fd. A nil table does nothing.
func (p *Pending) Put(fd int32, dev, ino uint64, off, n int64) {
	if p == nil || fd < 0 || int(fd) >= len(p.slots) {
		return
	}
	s := &p.slots[fd]
	s.tries, s.since, s.dev, s.ino, s.off, s.n = 0, now(), dev, ino, off, n
	atomic.StoreUint32(&s.valid, 1)
}

// Clear takes an event out, before it is answered.
func (p *Pending) Clear(fd int32) {
	if p == nil || fd < 0 || int(fd) >= len(p.slots) {
		return
	}
	if s := &p.slots[fd]; atomic.LoadUint32(&s.valid) != 0 {
		atomic.StoreUint32(&s.valid, 0)
	}
}

// Waiting says whether there are events in the table.
func (p *Pending) Waiting() bool {
	for i := range p.slots {
		if atomic.LoadUint32(&p.slots[i].valid) != 0 {
			return true
		}
	}
	return false
}

// Reserve returns the events that a dead process left, with their numbers reserved. It is called before this process
// reads the group, and as early as can be: a number that is in use here cannot be reserved, and its event will be denied.
func (p *Pending) Reserve() []Stale {
	var stale []Stale
	for i := range p.slots {
		s := &p.slots[i]
		if atomic.LoadUint32(&s.valid) == 0 {
			continue
		}
		s.tries++
		sane := s.off >= 0 && s.n > 0 && s.n <= math.MaxInt64-s.off
		givenUp := s.tries > maxTries && now()-s.since > int64(patience)
		if !sane || givenUp || !reserve(i) {
			atomic.StoreUint32(&s.valid, 0)
			continue
		}
		stale = append(stale, Stale{FD: int32(i), Dev: s.dev, Ino: s.ino, Off: s.off, N: s.n})
	}
	return stale
}

// now is a time that processes of one boot have in common.
func now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // every Linux has that clock
	}
	return ts.Nano()
}

// reserve opens something under that very number. Unlike dup3 this cannot close what somebody opened meanwhile.
func reserve(number int) bool {
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	if null == number {
		return true
	}
	defer unix.Close(null)
	got, err := unix.FcntlInt(uintptr(null), unix.F_DUPFD_CLOEXEC, number)
	if err == nil && got != number {
		unix.Close(got)
	}
	return err == nil && got == number
}
