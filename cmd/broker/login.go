package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
)

// A savedSession is what a login leaves behind, for the next commands.
type savedSession struct {
	Server  string    `json:"server"`
	Token   string    `json:"token"`
	Person  string    `json:"person"`
	Expires time.Time `json:"expires"`
}

// sessionFile is the person's own: nobody else may read it.
func (a *app) sessionFile() (string, error) {
	dir := a.getenv("XDG_CONFIG_HOME")
	if dir == "" {
		home := a.getenv("HOME")
		if home == "" {
			return "", errors.New("there is no home directory to keep a session in: set HOME or XDG_CONFIG_HOME")
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "access-broker", "session.json"), nil
}

// savedFor gives the session with a broker; nil: nobody is logged in.
func (a *app) savedFor(server string, now time.Time) (*savedSession, error) {
	path, err := a.sessionFile()
	if err != nil {
		return nil, nil // without a home there is no session
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("looking for a session: %w", err)
	case !info.Mode().IsRegular() || runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s may be read by others: remove it, and log in again", path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the session: %w", err)
	}
	var s savedSession
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("%s is damaged: remove it, and log in again", path)
	}
	if s.Server != server || !now.Before(s.Expires) {
		return nil, nil
	}
	return &s, nil
}

// save writes a session where the next commands find it, all or nothing.
func (a *app) save(s savedSession) error {
	path, err := a.sessionFile()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("keeping the session: %w", err)
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "session-*") // 0600
	if err != nil {
		return fmt.Errorf("keeping the session: %w", err)
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("keeping the session: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

// forget removes the session's file.
func (a *app) forget() error {
	path, err := a.sessionFile()
	if err != nil {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the session: %w", err)
	}
	return nil
}

func (a *app) loginCommand() *cobra.Command {
	var device, quiet bool
	c := &cobra.Command{
		Use:   "login",
		Short: "Log in as a person, to approve and to look",
		Long: `login opens your browser, where you log in with your provider and allow this
terminal to act as you. Where there is no browser, --device shows a code that
you type in on another computer. The session is kept in a file of yours (mode
0600) until it ends or you run "broker logout".`,
		Example: `  broker login
  broker login --device`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeoutCause(c.Context(), loginWait, errors.New("nobody logged in in time"))
			defer cancel()
			return a.anonymously(ctx, func(ctx context.Context, client *api.Client, server string) error {
				var s *api.Session
				var err error
				if device {
					s, err = a.loginByDevice(ctx, client)
				} else {
					s, err = a.loginByBrowser(ctx, client, !quiet)
				}
				if err != nil {
					return err
				}
				if err := a.save(savedSession{server, s.Token, s.Person, s.ExpiresAt}); err != nil {
					return err
				}
				return a.print(loggedIn{s.Person, s.Name, s.ExpiresAt}, func(w io.Writer) {
					fmt.Fprintf(w, "logged in as\t%s\n", plainly(cmp.Or(s.Name, s.Person)))
					fmt.Fprintf(w, "until\t%s, or unused for %s\n", clock(s.ExpiresAt), s.IdleAfter)
				})
			})
		},
	}
	c.Flags().BoolVar(&device, "device", false, "show a code to type in on another computer")
	c.Flags().BoolVar(&quiet, "no-browser", false, "print the address, and open no browser")
	a.client.add(c)
	return c
}

// loggedIn is what login prints: never the token.
type loggedIn struct {
	Person    string    `json:"person"`
	Name      string    `json:"name,omitempty"`
	ExpiresAt time.Time `json:"expires_at"`
}

// loginWait is how long a login may take.
const loginWait = 10 * time.Minute

func (a *app) logoutCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "logout",
		Short:   "End the session of this terminal",
		Example: `  broker logout`,
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			err := a.asPerson(c.Context(), func(ctx context.Context, client *api.Client) error { return client.CloseSession(ctx) })
			if errors.Is(err, errNotLoggedIn) || errors.Is(err, api.Unauthenticated) {
				err = nil // it has ended already
			}
			return errors.Join(err, a.forget())
		},
	}
	a.client.add(c)
	return c
}

// loginByDevice shows a code, and polls until its person is done (RFC 8628).
func (a *app) loginByDevice(ctx context.Context, client *api.Client) (*api.Session, error) {
	d, err := client.BeginDevice(ctx)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(a.err, "Open  %s\nand type the code  %s\n", d.VerificationURI, d.UserCode)
	pause := time.Duration(d.Interval) * time.Second
	for {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
		s, err := client.OpenSession(ctx, api.Login{DeviceCode: d.DeviceCode})
		switch {
		case errors.Is(err, api.SlowDown):
			pause += time.Second
		case !errors.Is(err, api.Pending):
			return s, err
		}
	}
}

// loginByBrowser has the browser bring a code to this computer's loopback
// interface, on a port of our own (RFC 8252, section 7.3).
func (a *app) loginByBrowser(ctx context.Context, client *api.Client, open bool) (*api.Session, error) {
	about, err := client.Discovery(ctx)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening for the browser: %w", err)
	}
	verifier, state := rand.Text()+rand.Text(), rand.Text()
	challenge := sha256.Sum256([]byte(verifier))
	query := url.Values{
		"port": {strconv.Itoa(l.Addr().(*net.TCPAddr).Port)}, "state": {state},
		"challenge": {base64.RawURLEncoding.EncodeToString(challenge[:])},
	}
	if about.Pages == "" {
		return nil, errors.New("nobody can log in there: no OpenID provider is configured (attest.people)")
	}
	where := about.Pages + "terminal?" + query.Encode()
	fmt.Fprintf(a.err, "Log in in your browser:\n  %s\n", where)
	if open {
		openBrowser(ctx, where)
	}
	code, err := awaitCode(ctx, l, state)
	if err != nil {
		return nil, err
	}
	return client.OpenSession(ctx, api.Login{Code: code, Verifier: verifier})
}

// awaitCode answers the browser once. Others on this computer may call too:
// without the state they are not listened to.
func awaitCode(ctx context.Context, l net.Listener, state string) (string, error) {
	type answer struct {
		code string
		err  error
	}
	answers := make(chan answer, 1)
	server := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if r.Host != l.Addr().String() || subtle.ConstantTimeCompare([]byte(query.Get("state")), []byte(state)) != 1 {
			http.Error(w, "This is not the login that the terminal waits for.", http.StatusBadRequest)
			return
		}
		given, said := answer{code: query.Get("code")}, "The terminal goes on. You can close this page."
		if given.code == "" {
			given.err, said = errors.New("the login was refused in the browser"), "The terminal was refused. You can close this page."
		}
		fmt.Fprintln(w, said)
		select {
		case answers <- given:
		default:
		}
	})}
	go func() { _ = server.Serve(l) }() // until it is shut down
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = server.Shutdown(stop)
	}()
	select {
	case got := <-answers:
		return got.code, got.err
	case <-ctx.Done():
		return "", fmt.Errorf("waiting for the browser: %w", context.Cause(ctx))
	}
}

// openBrowser tries; the address was printed as well.
func openBrowser(ctx context.Context, where string) {
	command := map[string][]string{"darwin": {"open"}, "windows": {"rundll32", "url.dll,FileProtocolHandler"}}[runtime.GOOS]
	if command == nil {
		command = []string{"xdg-open"}
	}
	_ = exec.CommandContext(ctx, command[0], append(command[1:], where)...).Start()
}

// errNotLoggedIn says that a command is for people, and nobody is logged in.
var errNotLoggedIn = errors.New(`you are not logged in: run "broker login"`)

// asPerson calls f for the person who is logged in.
func (a *app) asPerson(ctx context.Context, f func(context.Context, *api.Client) error) error {
	return a.anonymously(ctx, func(ctx context.Context, client *api.Client, server string) error {
		s, err := a.savedFor(server, time.Now())
		if err != nil {
			return err
		}
		if s == nil {
			return errNotLoggedIn
		}
		client.Token = func(context.Context) (string, error) { return s.Token, nil }
		return f(ctx, client)
	})
}

// anonymously calls f with a client that proves nobody. It knows the broker by
// its SPIFFE bundle, or by the authorities of BROKER_CA or of the web.
func (a *app) anonymously(ctx context.Context, f func(ctx context.Context, client *api.Client, server string) error) error {
	cfg := clientConfig{
		server:   a.server(),
		brokerID: cmp.Or(a.client.brokerID, a.getenv("BROKER_ID")),
		ca:       a.getenv("BROKER_CA"), socket: a.getenv("SPIFFE_ENDPOINT_SOCKET"), anonymous: true,
	}
	if err := checkServer(cfg.server); err != nil {
		return err
	}
	if cfg.ca == "" && cfg.socket != "" && cfg.brokerID == "" {
		return usage("say who the broker is before a session is sent to it: --broker-id SPIFFE-ID or BROKER_ID")
	}
	client, done, err := a.connect(ctx, cfg)
	if err != nil {
		return err
	}
	defer done()
	return f(ctx, client, cfg.server)
}
