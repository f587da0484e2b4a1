package bench

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// upstreamTakes is the duration of a call to the stand-in for Vault. It sleeps and
// does not compute: in production, Vault has a machine of its own.
const upstreamTakes = 5 * time.Millisecond

const (
	makeToken = "/v1/auth/token/create/broker-leases"
	makeUser  = "/v1/database/creds/orders-ro"
)

// An upstream answers the two calls that create a lease's token and a database
// user, and measures its own time for each lease.
type upstream struct {
	mu    sync.Mutex
	took  map[string]time.Duration
	calls int
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	var ask struct{ Meta map[string]string }
	answer := `{"lease_id":"database/creds/orders-ro/1","lease_duration":600,"data":{"username":"v-orders-1","password":"A1a-0123456789abcdef"}}`
	lease := strings.TrimPrefix(r.Header.Get("X-Vault-Token"), "of-")
	if r.URL.Path == makeToken {
		if err := json.NewDecoder(r.Body).Decode(&ask); err != nil {
			http.Error(w, "refused", http.StatusBadRequest)
			return
		}
		lease = ask.Meta["lease"]
		answer = fmt.Sprintf(`{"auth":{"client_token":"of-%s","accessor":"accessor-%s","orphan":true,"token_type":"service","lease_duration":600}}`, lease, lease)
	}
	time.Sleep(upstreamTakes)
	w.Header().Set("Content-Type", "application/json")
	u.mu.Lock()
	u.took[lease] += time.Since(began)
	u.calls++
	u.mu.Unlock()
	_, _ = io.WriteString(w, answer)
}

// spent returns the upstream's time for a lease and forgets it.
func (u *upstream) spent(lease string) (took time.Duration, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	took, ok = u.took[lease]
	delete(u.took, lease)
	return took, ok
}

// A relay makes the same two calls for each request and answers. On /durable it
// also appends two lines to a file, as the floor does; on / it does nothing else.
// It shows the share of the machine, TLS, HTTP and the disk.
type relay struct {
	upstream string
	client   *http.Client
	log      *groupLog
}

// relayMain is the relay's process: its arguments are address, certificate,
// key, the upstream's URL and the file to append to.
func relayMain(args []string) error {
	log, err := os.OpenFile(args[4], os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	f := &relay{upstream: args[3], client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32}}, log: &groupLog{file: log}}
	server := &http.Server{Addr: args[0], Handler: f, ReadHeaderTimeout: 10 * time.Second}
	return server.ListenAndServeTLS(args[1], args[2])
}

func (f *relay) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		return // a probe for readiness
	}
	lease := "lse_" + rand.Text()
	note := func() error { return nil }
	if r.URL.Path == "/durable" {
		note = func() error { return f.log.append([]byte(time.Now().Format(time.RFC3339Nano) + " " + lease + "\n")) }
	}
	_, err := io.Copy(io.Discard, r.Body)
	var made struct {
		Auth struct {
			Token string `json:"client_token"`
		}
	}
	var user json.RawMessage
	err = errors.Join(err, f.call(http.MethodPost, makeToken, "", fmt.Appendf(nil, `{"meta":{"lease":%q}}`, lease), &made), note())
	err = errors.Join(err, f.call(http.MethodGet, makeUser, made.Auth.Token, nil, &user), note())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	_, _ = fmt.Fprintf(w, `{"lease":%q,"secret":%s}`, lease, user)
}

func (f *relay) call(method, path, token string, body []byte, into any) error {
	r, err := http.NewRequest(method, f.upstream+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("X-Vault-Token", token)
	resp, err := f.client.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	return json.NewDecoder(resp.Body).Decode(into)
}
