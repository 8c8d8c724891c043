// Package browser drives a headless Chromium for tests of pages, and notes what goes
// wrong in them: exceptions, errors on the console, and every request.
package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/thaw-project/thaw/internal/testenv"
)

// patience is how long a page has for all that a test does with it, on a busy machine.
const patience = 2 * time.Minute

// Browser is a running Chromium.
type Browser struct {
	ctx context.Context
}

// New starts one, or skips; it ends with the test.
func New(t testing.TB) *Browser {
	t.Helper()
	path := testenv.NeedBrowser(t)
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]), chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()), chromedp.WSURLReadTimeout(patience),
		chromedp.DisableGPU, chromedp.Flag("disable-component-update", true))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		chromedp.Cancel(ctx) // waits for the process, which writes to its directory
		cancel()
		stop()
	})
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start %s: %v", path, err)
	}
	return &Browser{ctx}
}

// Page is a tab.
type Page struct {
	t   testing.TB
	ctx context.Context

	mu       sync.Mutex // guards what follows
	problems []string
	requests []string
}

// Open opens a tab, with the page's visible area in CSS pixels.
func (b *Browser) Open(t testing.TB, url string, width, height int64) *Page {
	t.Helper()
	tab, cancel := chromedp.NewContext(b.ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(tab); err != nil {
		t.Fatalf("open a tab: %v", err)
	}
	ctx, stop := context.WithTimeout(tab, patience)
	t.Cleanup(stop)
	p := &Page{t: t, ctx: ctx}
	if err := chromedp.Listen(ctx, p.event); err != nil {
		t.Fatal(err)
	}
	Call(p, network.Enable, network.EnableParams{})
	Call(p, log.Enable, cdp.Empty{})
	Call(p, runtime.Enable, cdp.Empty{})
	p.Do(chromedp.EmulateViewport(width, height), chromedp.Navigate(url))
	return p
}

// Call sends a command of Chromium's protocol.
func Call[P, R any](p *Page, cmd cdp.Command[P, R], params P) R {
	p.t.Helper()
	out, err := chromedp.Call(p.ctx, cmd, params)
	if err != nil {
		p.t.Fatalf("in the browser: %v", err)
	}
	return out
}

func (p *Page) event(e any) {
	problem := ""
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := e.(type) {
	case *runtime.EventExceptionThrown:
		problem = "exception: " + e.ExceptionDetails.Text
		if x := e.ExceptionDetails.Exception; x != nil {
			problem += fmt.Sprintf(" %s %s", x.Value, x.Description)
		}
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.ConsoleAPICalledTypeError || e.Type == runtime.ConsoleAPICalledTypeWarning || e.Type == runtime.ConsoleAPICalledTypeAssert {
			problem = "console " + string(e.Type)
			for _, a := range e.Args {
				problem += fmt.Sprintf(" %s %s", a.Value, a.Description)
			}
		}
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError || e.Entry.Level == log.EntryLevelWarning {
			problem = fmt.Sprintf("log: %s (%s)", e.Entry.Text, e.Entry.URL)
		}
	case *network.EventRequestWillBeSent:
		p.requests = append(p.requests, e.Request.URL)
	}
	if problem != "" {
		p.problems = append(p.problems, problem)
	}
}

// Do runs actions; that one fails ends the test.
func (p *Page) Do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	if err := chromedp.Do(p.ctx, actions...); err != nil {
		p.t.Fatalf("in the browser: %v; problems: %v", err, p.Problems())
	}
}

// Eval runs a script in the page and decodes what it returns, or what its promise
// comes to, into v; nil: it is not looked at.
func (p *Page) Eval(script string, v any) {
	p.t.Helper()
	if v == nil {
		script = "(async () => { await (" + script + "); return null })()"
	}
	b, err := chromedp.Run(p.ctx, chromedp.Evaluate[[]byte](script, chromedp.EvalAwaitPromise))
	if err == nil && v != nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		p.t.Fatalf("run in the browser: %v; problems: %v\n%.300s", err, p.Problems(), script)
	}
}

// Eventually waits until a script returns true.
func (p *Page) Eventually(script string) {
	p.t.Helper()
	_, err := chromedp.Run(p.ctx, chromedp.Poll[chromedp.Void](script, chromedp.WithPollingInterval(20*time.Millisecond), chromedp.WithPollingTimeout(patience)))
	if err != nil {
		p.t.Fatalf("wait for %s: %v; problems: %v", script, err, p.Problems())
	}
}

// PDF prints the page.
func (p *Page) PDF() []byte {
	p.t.Helper()
	b, err := chromedp.Run(p.ctx, chromedp.PrintToPDF(chromedp.PDFPrintBackground()))
	if err != nil {
		p.t.Fatalf("print: %v", err)
	}
	return b
}

// Problems returns what went wrong so far.
func (p *Page) Problems() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.problems)
}

// Requests returns the addresses that were asked for so far, without those that carry
// their answer with them.
func (p *Page) Requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(p.requests), func(url string) bool { return strings.HasPrefix(url, "data:") || strings.HasPrefix(url, "blob:") })
}
