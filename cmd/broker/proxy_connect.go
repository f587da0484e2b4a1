package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"accessbroker.internal/egress/forward"
)

// socketTimeout bounds a connection to a proxy's socket.
const socketTimeout = 10 * time.Second

// connectProxy runs a command whose calls go through a proxy behind a Unix socket. It
// needs no identity.
func (a *app) connectProxy(ctx context.Context, f *proxyFlags, program string, command []string) error {
	dial := func() (net.Conn, error) { return net.DialTimeout("unix", f.connect, socketTimeout) }
	authority, err := fetchAuthority(ctx, dial)
	if err != nil {
		return fmt.Errorf("connecting to the proxy at %s: %w", f.connect, err)
	}
	folder, err := newTrustFolder(authority)
	if err != nil {
		return err
	}
	defer folder.remove()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	token := rand.Text()
	bridge, ended := &forward.Bridge{Token: token, Dial: dial}, make(chan error, 1)
	go func() { ended <- bridge.Serve(l) }()
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	go folder.renew(work, 2*time.Hour, func() ([]byte, error) { return fetchAuthority(work, dial) })
	// The rules are those of another process: any credential in the environment could be
	// of a form that they add.
	env := childEnvironment{address: l.Addr().String(), token: token, trust: folder, injected: allInjections, placeholders: f.placeholders, identity: a.identityVariable()}
	err = a.relayed(program, command, env.of(os.Environ()), context.AfterFunc(ctx, cancel))
	_ = l.Close()
	return err
}

// fetchAuthority reads the certificate of a proxy's authority from the proxy. The
// connection stays open for as long as the reading lasts, so the socket remains claimed by
// this process.
func fetchAuthority(ctx context.Context, dial func() (net.Conn, error)) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, socketTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return dial() },
		DisableKeepAlives: true,
	}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://proxy"+forward.AuthorityPath, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(r)
	var call *url.Error
	if errors.As(err, &call) { // its URL is no one's
		return nil, call.Err
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(printable(string(bytes.TrimSpace(text))))
	}
	if block, rest := pem.Decode(text); block == nil || block.Type != "CERTIFICATE" || len(rest) > 0 {
		return nil, errors.New("another server answers there")
	}
	return text, nil
}
