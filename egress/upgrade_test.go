package egress_test

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/egress"
)

const wsKey = "dGhlIHNhbXBsZSBub25jZQ=="

// echoSocket accepts a WebSocket, sends the credential over two fragments, and then returns
// what it receives.
func echoSocket(edit func(http.Header)) http.HandlerFunc {
	return func(out http.ResponseWriter, r *http.Request) {
		sum := sha1.Sum([]byte(r.Header.Get("Sec-Websocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		h := out.Header()
		h.Set("Connection", "Upgrade")
		h.Set("Upgrade", "websocket")
		h.Set("Sec-Websocket-Accept", base64.StdEncoding.EncodeToString(sum[:]))
		h.Set("X-Seen", r.Header.Get("Authorization")+r.Header.Get("Sec-Websocket-Extensions")+" "+r.Header.Get("Sec-Websocket-Protocol"))
		if edit != nil {
			edit(h)
		}
		out.WriteHeader(http.StatusSwitchingProtocols)
		conn, buffered, err := http.NewResponseController(out).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		secret := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		half := len(secret) / 2
		fmt.Fprintf(buffered, "\x01%c%s\x80%c%s", half, secret[:half], len(secret)-half, secret[half:])
		_ = buffered.Flush()
		_, _ = io.Copy(conn, buffered)
	}
}

func (w *world) upgrade(header http.Header) (*http.Response, error) {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, w.host.URL+"/v1/ws", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Key": {wsKey}, "Sec-Websocket-Version": {"13"}}
	for name, values := range header {
		r.Header[name] = values
	}
	return w.transport.Upgrade(r)
}

func websockets(e *api.Egress) { e.Allow[0].WebSocket = true }

func TestWebSocketFramesAreScrubbed(t *testing.T) {
	w := newWorld(t, echoSocket(nil), websockets)
	resp, err := w.upgrade(http.Header{"Sec-Websocket-Extensions": {"permessage-deflate"}, "Sec-Websocket-Protocol": {"chat, base64url.bearer.authorization.k8s.io.abc"}})
	if err != nil {
		t.Fatal(err)
	}
	if seen := resp.Header.Get("X-Seen"); resp.StatusCode != http.StatusSwitchingProtocols || seen != "Bearer "+strings.Repeat("*", len(token))+" chat" {
		t.Errorf("got %d, %q", resp.StatusCode, seen)
	}
	socket := resp.Body.(io.ReadWriteCloser)
	if _, err := io.WriteString(socket, "\x81\x05hello"); err != nil {
		t.Fatal(err)
	}
	var text string
	for frames := bufio.NewReader(socket); !strings.HasSuffix(text, "hello"); {
		head := make([]byte, 2)
		if _, err := io.ReadFull(frames, head); err != nil {
			t.Fatal(err)
		}
		payload := make([]byte, head[1])
		if _, err := io.ReadFull(frames, payload); err != nil {
			t.Fatal(err)
		}
		text += string(payload)
	}
	if want := strings.Repeat("*", len(token)) + "hello"; text != want {
		t.Errorf("got %q, want %q", text, want)
	}
	if err := socket.Close(); err != nil {
		t.Error(err)
	}
	if len(w.outcomes) != 1 || w.outcomes[0].Sent != 7 || w.outcomes[0].Received < int64(len(text)) {
		t.Errorf("got the outcomes %+v", w.outcomes)
	}
}

func TestWebSocketsAreChecked(t *testing.T) {
	for name, c := range map[string]struct {
		rules  func(*api.Egress)
		host   func(http.Header)
		client http.Header
		want   string
	}{
		"a rule without WebSockets": {nil, nil, nil, egress.CodeWebSocket},
		"another accept":            {websockets, func(h http.Header) { h.Set("Sec-Websocket-Accept", "x") }, nil, egress.CodeUnreadable},
		"another protocol":          {websockets, func(h http.Header) { h.Set("Upgrade", "h2c") }, nil, egress.CodeUnreadable},
		"compression":               {websockets, func(h http.Header) { h.Set("Sec-Websocket-Extensions", "permessage-deflate") }, nil, egress.CodeUnreadable},
		"a subprotocol of the host": {websockets, func(h http.Header) { h.Set("Sec-Websocket-Protocol", "evil") }, nil, egress.CodeUnreadable},
		"a short key":               {websockets, nil, http.Header{"Sec-Websocket-Key": {"abc"}}, egress.CodeHeader},
		"another version":           {websockets, nil, http.Header{"Sec-Websocket-Version": {"8"}}, egress.CodeHeader},
	} {
		w := newWorld(t, echoSocket(c.host), c.rules)
		if resp, err := w.upgrade(c.client); codeOf(err) != c.want {
			t.Errorf("%s: got %v, %v; want %s", name, resp, err, c.want)
		}
	}
}

// A call without Upgrade never becomes something else than HTTP.
func TestRoundTripDoesNotUpgrade(t *testing.T) {
	w := newWorld(t, echoSocket(nil), websockets)
	if resp, _, err := w.call("GET", w.host.URL+"/v1/ws", "", http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Key": {wsKey}, "Sec-Websocket-Version": {"13"}}); err == nil && resp.StatusCode == http.StatusSwitchingProtocols {
		t.Errorf("got %v", resp)
	}
}

// A host can't turn a call into a WebSocket, not even with the accept of no key.
func TestHostDoesNotUpgrade(t *testing.T) {
	w := newWorld(t, nil, nil)
	sum := sha1.Sum([]byte("258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	url := w.onRaw(websockets, func(conn net.Conn) {
		_ = readRequest(conn)
		fmt.Fprintf(conn, "HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n\x81\x02hi\x88\x00", base64.StdEncoding.EncodeToString(sum[:]))
	})
	if resp, _, err := w.call("GET", url, "", nil); codeOf(err) != egress.CodeUnreadable {
		t.Errorf("got %v, %v", resp, err)
	}
}

// The host of a WebSocket that sends nothing, or never ends, meets the bounds on time.
func TestWebSocketsEndInTime(t *testing.T) {
	for name, edit := range map[string]func(*api.Egress){
		"a silent host":   func(e *api.Egress) { e.IdleTimeout = api.Duration(200 * time.Millisecond) },
		"an endless host": func(e *api.Egress) { e.Timeout = api.Duration(200 * time.Millisecond) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, echoSocket(nil), func(e *api.Egress) { websockets(e); edit(e) })
			resp, err := w.upgrade(nil)
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { _, err := io.ReadAll(resp.Body); ended <- err }()
			select {
			case err := <-ended:
				if codeOf(err) != egress.CodeTimeout {
					t.Errorf("got %v, want a timeout", err)
				}
			case <-time.After(30 * time.Second):
				t.Error("the WebSocket did not end")
			}
			_ = resp.Body.Close()
		})
	}
}

func TestWebSocketsAreBounded(t *testing.T) {
	w := newWorld(t, echoSocket(nil), func(e *api.Egress) { e.Allow[0].WebSocket, e.MaxAnswer, e.MaxRequest = true, 10, 10 })
	resp, err := w.upgrade(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(resp.Body); codeOf(err) != egress.CodeAnswerTooLarge {
		t.Errorf("reading: got %v", err)
	}
	if _, err := resp.Body.(io.Writer).Write(make([]byte, 11)); codeOf(err) != egress.CodeRequestTooLarge {
		t.Errorf("writing: got %v", err)
	}
	_ = resp.Body.Close()
}
