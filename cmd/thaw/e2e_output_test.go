package main

import (
	"bytes"
	"strings"
	"sync"
	"time"
)

// output keeps what a process prints, and tells who waits for a text.
type output struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	more chan struct{} // closed and replaced with every write
}

func newOutput() *output { return &output{more: make(chan struct{})} }

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.more)
	o.more = make(chan struct{})
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// wait returns true once text was written, or false when that will not be.
func (o *output) wait(text string, done <-chan struct{}) bool {
	timeout := time.After(patience)
	for {
		o.mu.Lock()
		has, more := strings.Contains(o.buf.String(), text), o.more
		o.mu.Unlock()
		if has {
			return true
		}
		select {
		case <-more:
		case <-done:
			return strings.Contains(o.String(), text)
		case <-timeout:
			return false
		}
	}
}
