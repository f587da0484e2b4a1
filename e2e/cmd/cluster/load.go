package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/attest/localca"
	"accessbroker.internal/internal/devworld"
)

// A load is a number of workloads that request tokens as fast as they get them.
type load struct {
	clients int
	lasts   time.Duration // zero: until the program ends
	out     io.Writer

	tokens, failures atomic.Int64
	last             atomic.Pointer[error] // the last failure
}

func (l *load) run(ctx context.Context, dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, descriptionFile))
	if err != nil {
		return fmt.Errorf("%s is not the folder of a running cluster: %w", dir, err)
	}
	var d description
	if err := json.Unmarshal(text, &d); err != nil {
		return err
	}
	ca, err := localca.Open(d.CA, devworld.TrustDomain)
	if err != nil {
		return err
	}
	if l.lasts > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, l.lasts)
		defer cancel()
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.X509Bundle())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}, MaxIdleConnsPerHost: l.clients}
	defer transport.CloseIdleConnections()
	var all sync.WaitGroup
	for n := range l.clients {
		id := fmt.Sprintf("spiffe://%s/service/load-%d", devworld.TrustDomain, n+1)
		c := &api.Client{BaseURL: d.URL, HTTP: &http.Client{Transport: transport, Timeout: 10 * time.Second},
			Token: func(context.Context) (string, error) { return ca.JWTSVID(id, localca.JWTTTL, d.URL) }}
		all.Go(func() { l.request(ctx, c) })
	}
	l.report(ctx)
	all.Wait()
	if l.tokens.Load() == 0 {
		return errors.New("no token was issued")
	}
	return nil
}

func (l *load) request(ctx context.Context, c *api.Client) {
	for ctx.Err() == nil {
		_, _, err := c.AskAndCollect(ctx, api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}})
		switch {
		case err == nil:
			l.tokens.Add(1)
		case ctx.Err() == nil:
			l.failures.Add(1)
			l.last.Store(&err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// report prints a line each second.
func (l *load) report(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	tokens, failures := int64(0), int64(0)
	for {
		select {
		case <-ctx.Done():
			_, _ = fmt.Fprintf(l.out, "%d tokens, %d errors\n", l.tokens.Load(), l.failures.Load())
			return
		case now := <-tick.C:
			t, f := l.tokens.Load(), l.failures.Load()
			line := fmt.Sprintf("%s %5d tokens/s %5d errors/s", now.Format("15:04:05"), t-tokens, f-failures)
			if last := l.last.Swap(nil); last != nil && f > failures {
				line += "  " + short((*last).Error(), 40)
			}
			_, _ = fmt.Fprintln(l.out, line)
			tokens, failures = t, f
		}
	}
}

// short returns the end of a text, which has at most n characters.
func short(text string, n int) string {
	runes := []rune(text)
	if len(runes) <= n {
		return text
	}
	return "…" + string(runes[len(runes)-n+1:])
}
