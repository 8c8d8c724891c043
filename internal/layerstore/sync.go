package layerstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Sync makes what is here durable: the data first, then, in one step, the have
// file. Bits that are set while it runs wait for the next one. It does nothing
// where nothing changed.
//
// Where the data cannot be synced, every bit that is not durable yet is taken
// back, and the error returned: the kernel may have dropped pages that it could
// not write, and would report it only this once. Where only the have file cannot
// be written the bits stay, and the older have file with them.
func (l *Layer) Sync() error {
	if l.gone.Load() {
		return nil
	}
	if l.closed.Load() {
		return fmt.Errorf("sync layer %s: %w", l.meta.Blob, ErrClosed)
	}
	return l.save(false)
}

// save is Sync; with clean it also notes, if it is so, that no span without a
// bit is on disk.
func (l *Layer) save(clean bool) error {
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	changes := l.changes.Load()
	clean = clean && !l.anySuspect()
	if l.saved && changes == l.savedChanges && (l.savedClean || !clean) {
		return nil
	}
	if !l.saved && changes == 0 && l.here.Load() == 0 {
		return nil // nothing learnt about this layer, so nothing to say
	}
	snapshot, err := l.syncData(l.store.fdatasync)
	if err != nil {
		return err
	}
	h := &haveMap{bits: snapshot}
	if clean {
		h.flags = flagClean
	}
	if err := l.writeHave(h); err != nil {
		return err
	}
	l.savedChanges = changes
	if l.store.opts.DropCache {
		// What is not hashed yet stays cached for Advance.
		return dropHashed(l.file, l.hashed.Load())
	}
	return nil
}

func dropHashed(f *os.File, n int64) error {
	if n == 0 {
		return nil
	}
	return dropCache(f, 0, n)
}

// syncData returns the bits whose data is on disk after it. A bit is set after
// its data was written, so what is set before the sync is covered by it. syncMu
// is held, so nothing is forgotten and put anew in between.
func (l *Layer) syncData(sync func(*os.File) error) ([]uint64, error) {
	snapshot := make([]uint64, len(l.have))
	for i := range l.have {
		snapshot[i] = l.have[i].Load()
	}
	if err := sync(l.file); err != nil {
		l.DropPieces()
		n := l.forget(func(i int) bool { return l.durable[i>>6]&(1<<(i&63)) == 0 })
		return nil, fmt.Errorf("sync layer %s (%d spans lost): %w", l.meta.Blob, n, err)
	}
	return snapshot, nil
}

// writeHave writes the have file, in full, with what of it is the layer's. h.bits
// must be synced. syncMu is held.
func (l *Layer) writeHave(h *haveMap) error {
	dir := l.store.layerDir(l.meta.Blob)
	if !l.metaDurable {
		err := errors.Join(fsyncPath(filepath.Join(dir, metaName)), fsyncPath(dir), fsyncPath(filepath.Dir(dir)))
		if err != nil {
			return fmt.Errorf("sync layer %s: %w", l.meta.Blob, err)
		}
		l.metaDurable = true
	}
	st, err := l.file.Stat()
	if err != nil {
		return fmt.Errorf("sync layer %s: %w", l.meta.Blob, err)
	}
	l.generation++
	h.spans, h.generation, h.mtimeNs = l.meta.Spans(), l.generation, st.ModTime().UnixNano()
	h.boot, h.table = l.store.boot, l.meta.tableSum()
	if err := writeFile(filepath.Join(dir, haveName), encodeHave(h), true); err != nil {
		l.saved = false
		return fmt.Errorf("sync layer %s: %w", l.meta.Blob, err)
	}
	l.durable, l.saved, l.savedClean = h.bits, true, h.flags&flagClean != 0
	return nil
}

func (l *Layer) anySuspect() bool {
	for i := range l.suspect {
		if l.suspect[i].Load() != 0 {
			return true
		}
	}
	return false
}
