package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/mount/keeper"
)

// Upgrade is what Run returns when the process is to become another program,
// which goes on with what is mounted.
type Upgrade struct{ Executable string }

func (u *Upgrade) Error() string { return "the daemon becomes " + u.Executable }

// Program is what a program says of itself before a daemon hands over to it.
type Program struct {
	Name           string `json:"program"` // its version
	KeeperProtocol int    `json:"keeperProtocol"`
}

const (
	// checkTimeout bounds how long a new program may take to say what it is.
	checkTimeout = 10 * time.Second
	// startsTimeout is how long an upgrade waits for images that are being
	// mounted or pulled.
	startsTimeout = 10 * time.Second
)

// serveUpgrade hands over to another program if that can be thaw: until then
// nothing has changed, and afterwards the keeper goes back should it die.
func (d *Daemon) serveUpgrade(w http.ResponseWriter, r *http.Request) {
	var req api.UpgradeRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		writeError(w, api.Errorf(api.CodeInvalid, "", "decode request: %v", err))
		return
	}
	if err := d.checkProgram(r.Context(), req.Executable); err != nil {
		writeError(w, err)
		return
	}
	if err := d.prepareUpgrade(r.Context(), req.Executable); err != nil {
		writeError(w, err)
		return
	}
	answer(w, struct{}{}, nil)
	d.cancel()
}

// checkProgram has a program say what it is.
func (d *Daemon) checkProgram(ctx context.Context, executable string) error {
	const unchanged = "nothing has changed: the running daemon goes on"
	if !filepath.IsAbs(executable) {
		return api.Errorf(api.CodeInvalid, unchanged, "upgrade to %q: the path has to be absolute", executable)
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, executable, "keeper", "--check")
	cmd.WaitDelay = time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var p Program
	if err == nil {
		err = json.Unmarshal(out, &p)
	}
	if err != nil {
		text := strings.TrimSpace(stderr.String())
		return api.Errorf(api.CodeUnsupported, unchanged, "upgrade to %s: it does not work here: %v %s", executable, err, text[:min(len(text), 300)])
	}
	if p.KeeperProtocol != keeper.ProtocolVersion {
		return api.Errorf(api.CodeUnsupported, unchanged+"; end what is mounted and thaw daemon stop to change to it",
			"upgrade to %s: version %s speaks version %d of the keeper's protocol, this one %d", executable, p.Name, p.KeeperProtocol, keeper.ProtocolVersion)
	}
	d.log.Info("daemon is upgraded", "from", d.cfg.Version, "to", p.Name, "executable", executable)
	return nil
}

// prepareUpgrade takes no more calls, and waits for starts that are under way. A
// daemon that is told to end meanwhile ends.
func (d *Daemon) prepareUpgrade(ctx context.Context, executable string) error {
	d.mu.Lock()
	if d.leaving {
		d.mu.Unlock()
		return errLeaving
	}
	d.leaving = true
	d.mu.Unlock()
	err := d.waitStarts(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx.Err() != nil {
		return errLeaving
	}
	if err != nil {
		d.leaving = false
		return err
	}
	d.upgrade = executable
	return nil
}

// waitStarts waits until no start is under way, but not for long.
func (d *Daemon) waitStarts(ctx context.Context) error {
	deadline := time.After(startsTimeout)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for d.busy() {
		select {
		case <-tick.C:
		case <-deadline:
			d.log.Warn("upgrade gives up starts that are under way", "after", startsTimeout)
			return nil
		case <-d.ctx.Done():
			return d.ctx.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// start counts a call that mounts or pulls; the function it returns ends it.
func (d *Daemon) start() func() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.starts++
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.starts--
	}
}

func (d *Daemon) busy() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.starts > 0
}

// errLeaving is answered to calls that come too late. Clients try again, with
// the next daemon.
var errLeaving = api.Errorf(api.CodeLeaving, "try again", "the daemon is leaving")

// serves tells others that the daemon answers calls, and makes the keeper one of
// this program's.
func (d *Daemon) serves() {
	d.cfg.Manager.Ready("mount path " + d.mode)
	if d.keeper == nil {
		return
	}
	if err := d.keeper.Serves(d.cfg.Restart); err != nil && !errors.Is(err, context.Canceled) {
		d.log.Error("tell keeper how to start a daemon", "err", err)
	}
	ctx, cancel := context.WithTimeout(d.ctx, checkTimeout)
	defer cancel()
	if err := d.keeper.Renew(ctx); err != nil && d.ctx.Err() == nil {
		d.log.Error("the keeper stays of an older version", "version", d.keeper.About().Version, "err", fmt.Errorf("replace keeper: %w", err))
	}
}
