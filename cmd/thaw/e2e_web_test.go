package main

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/testenv"
	"github.com/thaw-project/thaw/internal/testenv/browser"
)

// TestWeb: a browser sees starts as they happen, and their reports; others see nothing.
func TestWeb(t *testing.T) {
	t.Parallel()
	testenv.NeedRoot(t)
	testenv.NeedRuntime(t)
	layout := filepath.Join(testenv.Corpus(t), "oci")
	addr := "127.0.0.1:" + freePort(t)
	n := newNode(t, "web = \""+addr+"\"", "idle-exit = \"0s\"")
	s := newLab(t, layout, "none")
	ref := s.Addr() + "/nginx"
	n.pushIndex(ref)
	b := browser.New(t)
	d := n.start("daemon")
	n.daemon()
	n.eventually("it answers", func() bool {
		resp, err := http.Get("http://" + addr + "/")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	})
	p := b.Open(t, "http://"+addr+"/", 1280, 900)
	p.Eventually(`document.getElementById("live").classList.contains("on")`)
	p.Eventually(`document.querySelector("#overview h1").textContent === "No starts yet."`)

	port := freePort(t)
	run := n.launch("--index=require", "-e", "PORT="+port, "--ready", "http://127.0.0.1:"+port+"/ready", ref)
	p.Eventually(`document.querySelectorAll("#now tbody tr").length === 1 && document.querySelector("#now td.path").textContent.includes("/nginx")`)
	p.Eventually(`/ready/.test(document.querySelector("#now tbody tr").textContent)`)
	p.Eventually(`document.querySelector("#now tbody tr a") !== null`) // its recording is over
	p.Eventually(`document.querySelectorAll("#fleet tbody tr").length === 1 && !/–/.test(document.querySelector("#fleet tbody tr").textContent)`)
	p.Eventually(`document.querySelectorAll("#trend circle").length === 1 && /not read until ready/.test(document.querySelector("#overview h1").textContent)`)
	run.signal(unix.SIGTERM)
	run.wait()

	n.refuses(125, "", n.runArgs("--pull=always", s.Addr()+"/no-such-image")...)
	p.Eventually(`[...document.querySelectorAll("#now tbody tr")].some((r) => /no-such-image.*failed: /.test(r.textContent))`)
	p.Eval(`document.querySelector("[data-table=trend]").click()`, nil)
	p.Eventually(`document.querySelector("#trend table") !== null`)

	var link string
	p.Eval(`document.querySelector("#now tbody tr:last-child a").href`, &link)
	report := b.Open(t, link, 1280, 900)
	report.Eventually(`document.querySelector("#waterfall [data-row=image_pull]") !== null && /ms|s/.test(document.querySelector("h1").textContent)`)
	report.Eventually(`document.querySelector("#method").textContent.includes("the daemon of thaw")`)
	var home string
	if report.Eval(`document.querySelector("a.brand").href`, &home); home != "http://"+addr+"/" {
		t.Errorf("the way back leads to %s", home)
	}
	n.eventually("records say what was started", func() bool { // of what failed after it was shown
		out := n.thaw("runs", "ls", "--source", "daemon")
		return strings.Contains(out, "/nginx") && strings.Contains(out, "/no-such-image")
	})
	for name, page := range map[string]*browser.Page{"starts": p, "report": report} {
		for _, problem := range page.Problems() {
			t.Errorf("in the page of %s: %s", name, problem)
		}
		for _, url := range page.Requests() {
			if !strings.HasPrefix(url, "http://"+addr+"/") {
				t.Errorf("the page of %s asked for %s", name, url)
			}
		}
	}

	n.thaw("daemon", "stop")
	d.wait()
	p.Eventually(`!document.getElementById("live").classList.contains("on")`)
	n.start("daemon") // the next one shows them too
	n.daemon()
	p.Eventually(`document.getElementById("live").classList.contains("on")`)
	next := b.Open(t, "http://"+addr+"/", 390, 800)
	next.Eventually(`document.querySelectorAll("#now tbody tr").length === 2 && document.scrollingElement.scrollWidth <= innerWidth`)
	n.webRefuses(addr)
}

// webRefuses asks for what is nobody's business.
func (n *node) webRefuses(addr string) {
	n.Helper()
	client := http.Client{Timeout: patience} // events go on for ever, for those who may see them
	for _, c := range []struct {
		method, path, host string
		want               int
	}{
		{"GET", "/", addr, 200}, {"GET", "/", "localhost:1", 200}, {"GET", "/", "[::1]:1", 200}, {"HEAD", "/", "LOCALHOST", 200},
		{"GET", "/", "rebound.example:80", 421}, {"GET", "/events", "rebound.example", 421}, {"GET", "/", "192.0.2.1:80", 421}, {"GET", "/", "localhost.rebound.example", 421},
		{"POST", "/", addr, 405}, {"DELETE", "/starts/x", addr, 405}, {"GET", "/starts/x", addr, 404}, {"GET", "/starts/..%2f..%2fprofiles.db", addr, 404}, {"GET", "/v1/status", addr, 404},
	} {
		req, err := http.NewRequest(c.method, "http://"+addr+c.path, nil)
		if err != nil {
			n.Fatal(err)
		}
		req.Host = c.host
		resp, err := client.Do(req)
		if err != nil {
			n.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.want || resp.Header.Get("X-Frame-Options") != "DENY" || resp.Header.Get("Access-Control-Allow-Origin") != "" {
			n.Errorf("%s %s as %s: %s, want %d", c.method, c.path, c.host, resp.Status, c.want)
		}
	}
}

// TestWebOff: nothing of it is there unless it was asked for, and others are not shown
// anything unless that was said.
func TestWebOff(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.start("daemon")
	n.daemon()
	n.thaw("daemon", "stop")
	if _, err := os.Stat(filepath.Join(n.root, "profiles.db")); err == nil {
		t.Error("there are records")
	}
	n.refuses(2, "others would see it", "daemon", "--web", "0.0.0.0:9799")
	n.refuses(2, "others would see it", "daemon", "--web", ":9799")
	n.refuses(2, "want HOST:PORT", "daemon", "--web", "9799")
}
