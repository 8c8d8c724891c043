package keeper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// A message is one packet of at most maxMessageBytes, with at most one descriptor beside it:
//
//	offset 0  u16  magic "TK"
//	       2  u8   version of the protocol, 2
//	       3  u8   kind
//	       4  u32  value, little-endian; what it means depends on the kind
//	       8  u16  length of the text, little-endian; exactly what follows the header
//	      10  u16  zero, for later
//	      12       text
//
// Daemon and keeper may be of different builds: an upgrade replaces the daemon first. Within a version kinds are only added, and who gets
// one that it does not know ignores it. Another version is refused, and an upgrade to it too (see Check), before anything is handed over.
const (
	// ProtocolVersion is what daemon and keeper have to have in common.
	ProtocolVersion = 2

	headerBytes     = 12
	maxTextBytes    = 16 << 10
	maxMessageBytes = headerBytes + maxTextBytes
)

// ErrProtocol says that daemon and keeper are of versions that do not understand each other.
var ErrProtocol = errors.New("decode keeper message: another version of the protocol")

type kind uint8

const (
	// kindWelcome: keeper to daemon, first. Value: number of messages that follow: kindPending where there is a
	// table, then kindLayer. Text: About in JSON. With the group's descriptor where there is one.
	kindWelcome kind = iota + 1
	// kindLayer: both ways. Text: the layer's digest; with its first descriptor.
	kindLayer
	// kindGroup: daemon to keeper, with the group's descriptor.
	kindGroup
	// kindDrop: daemon to keeper. Text: the digest of a layer that needs to be held no more.
	kindDrop
	// kindSync: daemon to keeper: answer when all before this is done. Value: a number.
	kindSync
	// kindSynced: keeper to daemon: the answer, with the same number.
	kindSynced
	// kindGoodbye: daemon to keeper: it leaves on purpose and is not to be started again.
	kindGoodbye
	// kindRefused: keeper to daemon, instead of kindWelcome. Text: why.
	kindRefused
	// kindPending: both ways, with the descriptor of the table of pending events.
	kindPending
	// kindRestart: daemon to keeper, once it answers calls. Text: a JSON list, the command that starts a daemon like it; empty: the keeper is
	// not to start any.
	kindRestart
	// kindHandover: daemon to keeper, in place of kindGoodbye: its process becomes another program, which connects.
	kindHandover
	kindEnd
)

type message struct {
	kind  kind
	value uint32
	text  string
}

// wantsFD says whether a message of this kind comes with a descriptor; kindWelcome may.
func (k kind) wantsFD() bool { return k == kindLayer || k == kindGroup || k == kindPending }

func (m message) encode() ([]byte, error) {
	if len(m.text) > maxTextBytes {
		return nil, fmt.Errorf("encode keeper message: text of %d bytes, at most %d", len(m.text), maxTextBytes)
	}
	b := make([]byte, headerBytes, headerBytes+len(m.text))
	b[0], b[1], b[2], b[3] = 'T', 'K', ProtocolVersion, byte(m.kind)
	binary.LittleEndian.PutUint32(b[4:], m.value)
	binary.LittleEndian.PutUint16(b[8:], uint16(len(m.text)))
	return append(b, m.text...), nil
}

func decodeMessage(b []byte) (message, error) {
	if len(b) < headerBytes || b[0] != 'T' || b[1] != 'K' {
		return message{}, fmt.Errorf("decode keeper message: %d bytes without a header", len(b))
	}
	if b[2] != ProtocolVersion {
		return message{}, fmt.Errorf("%w: it is %d, want %d", ErrProtocol, b[2], ProtocolVersion)
	}
	m := message{kind: kind(b[3]), value: binary.LittleEndian.Uint32(b[4:]), text: string(b[headerBytes:])}
	if m.kind == 0 {
		return message{}, errors.New("decode keeper message: kind 0")
	}
	if n := int(binary.LittleEndian.Uint16(b[8:])); n != len(m.text) || n > maxTextBytes {
		return message{}, fmt.Errorf("decode keeper message: text of %d bytes, header says %d", len(m.text), n)
	}
	return m, nil
}

// send writes one message; fd -1 is none. The descriptor stays the caller's.
func send(conn *net.UnixConn, m message, fd int) error {
	b, err := m.encode()
	if err != nil {
		return err
	}
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	if _, _, err := conn.WriteMsgUnix(b, oob, nil); err != nil {
		return fmt.Errorf("send keeper message: %w", err)
	}
	return nil
}

// receive reads one message. The descriptor, -1 for none, is the caller's to close. It is io.EOF when the other side is gone.
func receive(conn *net.UnixConn) (m message, fd int, err error) {
	var b [maxMessageBytes + 1]byte
	oob := make([]byte, unix.CmsgSpace(4*4))
	n, oobn, flags, _, err := conn.ReadMsgUnix(b[:], oob) // sets MSG_CMSG_CLOEXEC
	if err != nil {
		return message{}, -1, err
	}
	fds, err := rights(oob[:oobn])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errors.New("receive keeper message: cut short")
	}
	if err == nil {
		m, err = decodeMessage(b[:n])
	}
	if err == nil && (len(fds) > 1 || m.kind < kindEnd && (len(fds) == 0) == m.kind.wantsFD() && m.kind != kindWelcome) {
		err = fmt.Errorf("receive keeper message: kind %d with %d descriptors", m.kind, len(fds))
	}
	if err != nil {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return message{}, -1, err
	}
	if len(fds) == 1 {
		return m, fds[0], nil
	}
	return m, -1, nil
}

func rights(oob []byte) ([]int, error) {
	control, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("receive keeper message: %w", err)
	}
	var all []int
	for i := range control {
		fds, err := unix.ParseUnixRights(&control[i])
		if err != nil {
			continue // credentials and the like
		}
		all = append(all, fds...)
	}
	return all, nil
}
