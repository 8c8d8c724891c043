package fuse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// backings remembers, in the connection's Init file, which backing file the kernel has for which node. The kernel refuses every open (EIO)
// of a file that is passed through already, unless it names the same backing; so a later daemon must go on with the numbers.
//
// Layout, from backingsOffset on, in the machine's byte order: slots of u64 node, u32 number, u32 0. A slot of node 0 is free.
type backings struct {
	mu    sync.Mutex // guards what follows
	file  *os.File
	slots []uint64 // nodes; 0: free
}

const (
	backingsOffset = 64 << 10
	backingBytes   = 16
	maxBackings    = 64 << 10 // far more than a process may have files
)

// loadBackings returns the numbers that an earlier daemon used, by node.
func loadBackings(file *os.File) (*backings, map[uint64]int32, error) {
	b, held := &backings{file: file}, map[uint64]int32{}
	var slot [backingBytes]byte
	for i := range maxBackings {
		_, err := file.ReadAt(slot[:], backingsOffset+int64(i)*backingBytes)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read numbers of backing files: %w", err)
		}
		node, number := binary.NativeEndian.Uint64(slot[:]), binary.NativeEndian.Uint32(slot[8:])
		if node != 0 && int32(number) > 0 {
			held[node] = int32(number)
		} else {
			node = 0
		}
		b.slots = append(b.slots, node)
	}
	return b, held, nil
}

// put is called before the kernel is told of the number.
func (b *backings) put(node uint64, number int32) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	at := len(b.slots)
	for i, n := range b.slots {
		if n == node || n == 0 {
			at = i
			break
		}
	}
	if at == maxBackings {
		return errors.New("too many backing files")
	}
	if err := b.write(at, node, number); err != nil {
		return err
	}
	if at == len(b.slots) {
		b.slots = append(b.slots, 0)
	}
	b.slots[at] = node
	return nil
}

// drop is called before the number is given back.
func (b *backings) drop(node uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, n := range b.slots {
		if n == node {
			b.slots[i] = 0
			return b.write(i, 0, 0)
		}
	}
	return nil
}

func (b *backings) write(at int, node uint64, number int32) error {
	var slot [backingBytes]byte
	binary.NativeEndian.PutUint64(slot[:], node)
	binary.NativeEndian.PutUint32(slot[8:], uint32(number))
	if _, err := b.file.WriteAt(slot[:], backingsOffset+int64(at)*backingBytes); err != nil {
		return fmt.Errorf("remember number of backing file: %w", err)
	}
	return nil
}
