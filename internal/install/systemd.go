package install

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// Unit is thaw's service.
const Unit = "thaw.service"

// Managed reports whether services of the host are systemd's.
func (p *Plan) Managed() bool {
	_, err := os.Stat(p.opts.at("/run/systemd/system"))
	return err == nil
}

// ContainerdUnit is the service that runs containerd.
func (p *Plan) ContainerdUnit(ctx context.Context) string {
	units := []string{"containerd.service"}
	switch {
	case strings.HasPrefix(p.Config, "/var/lib/rancher/k3s/"):
		units = []string{"k3s.service", "k3s-agent.service"}
	case strings.HasPrefix(p.Config, "/var/lib/rancher/rke2/"):
		units = []string{"rke2-server.service", "rke2-agent.service"}
	}
	for _, u := range units {
		if systemctl(ctx, "is-active", "--quiet", u) == nil {
			return u
		}
	}
	return units[0]
}

// ours reports whether the service is there because of us.
func (p *Plan) ours() bool { return slices.Contains(p.left.Created, unitPath) }

// Next are the commands that have what Apply wrote take effect, in order.
func (p *Plan) Next(ctx context.Context) [][]string {
	unit := p.ContainerdUnit(ctx)
	switch {
	case !p.remove:
		return [][]string{{"systemctl", "daemon-reload"}, {"systemctl", "enable", Unit}, {"systemctl", "restart", Unit}, {"systemctl", "restart", unit}}
	case p.ours():
		return [][]string{{"systemctl", "restart", unit}, {"systemctl", "stop", Unit}}
	}
	return [][]string{{"systemctl", "restart", unit}, {"systemctl", "restart", Unit}}
}

// ByHand says what is left to do on a host without systemd.
func (p *Plan) ByHand() string {
	if p.remove {
		return "services are not systemd's here: restart containerd, and end thaw's daemon, as this host does"
	}
	return "services are not systemd's here: start thaw daemon --idle-exit=0s --containerd-listen " + p.opts.Socket + ", and restart containerd, as this host does"
}

// Run applies the plan and, with restart, has it take effect. Should thaw's daemon
// not start, or containerd with its new configuration, that is the one before again.
func (p *Plan) Run(ctx context.Context, restart bool) error {
	if p.remove {
		return p.end(ctx, restart)
	}
	if err := p.Apply(ctx); err != nil || !restart {
		return err
	}
	commands := p.needed(ctx)
	for i, c := range commands {
		err := systemctl(ctx, c[1:]...)
		if err == nil {
			continue
		}
		if !p.ConfigChanged() {
			return err
		}
		if rerr := p.Revert(); rerr != nil {
			return fmt.Errorf("%w; put containerd's configuration back: %w", err, rerr)
		}
		if i < len(commands)-1 { // containerd was not restarted, and would ask nobody at its next start
			return fmt.Errorf("%w; containerd's configuration is the one from before", err)
		}
		if rerr := systemctl(ctx, c[1:]...); rerr != nil {
			return fmt.Errorf("%w; with the configuration from before: %w", err, rerr)
		}
		return fmt.Errorf("%w; it runs with its configuration from before again", err)
	}
	return nil
}

// needed is Next without restarts of what runs as it should.
func (p *Plan) needed(ctx context.Context) [][]string {
	all := p.Next(ctx)
	same := func(path string) bool {
		return !slices.ContainsFunc(p.Files, func(f File) bool { return f.Path == path && f.Action != Keep })
	}
	if same(programPath) && same(unitPath) && same(unitDropIn) {
		all[2] = []string{"systemctl", "start", Unit}
	}
	if !p.ConfigChanged() {
		all = all[:3]
	}
	return all
}

// end lets containerd forget the snapshotter before that goes.
func (p *Plan) end(ctx context.Context, restart bool) error {
	commands := p.Next(ctx)
	if err := p.writeAll(func(f File) bool { return f.config }); err != nil {
		return err
	}
	if restart {
		if err := systemctl(ctx, commands[0][1:]...); err != nil {
			return err
		}
	}
	if p.Managed() && p.ours() {
		args := []string{"disable", Unit}
		if restart {
			args = []string{"disable", "--now", Unit}
		}
		if err := systemctl(ctx, args...); err != nil {
			p.Notes = append(p.Notes, err.Error()) // it is not there any more
		}
	}
	if err := p.Apply(ctx); err != nil {
		return err
	}
	if !p.Managed() {
		return nil
	}
	err := systemctl(ctx, "daemon-reload")
	if err == nil && restart && !p.ours() {
		err = systemctl(ctx, commands[1][1:]...)
	}
	return err
}

func systemctl(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
