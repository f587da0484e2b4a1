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
	"strings"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
)

// A savedSession is a session that login stores for later commands.
type savedSession struct {
	Server  string    `json:"server"`
	Token   string    `json:"token"`
	Person  string    `json:"person"`
	Expires time.Time `json:"expires"`
}

// sessionFile returns the path of the saved session.
func (a *app) sessionFile() (string, error) {
	dir, err := a.userDir(".config", "XDG_CONFIG_HOME")
	if err != nil {
		return "", fmt.Errorf("no directory for the session: %w", err)
	}
	return filepath.Join(dir, "access-broker", "session.json"), nil
}

// userDir returns the folder that one of the variables names, or else one below the
// home directory (XDG Base Directory Specification).
func (a *app) userDir(below string, variables ...string) (string, error) {
	for _, name := range variables {
		if dir := a.getenv(name); dir != "" {
			return dir, nil
		}
	}
	home := a.getenv("HOME")
	if home == "" {
		return "", fmt.Errorf("set HOME or %s", strings.Join(variables, " or "))
	}
	return filepath.Join(home, below), nil
}

// savedFor returns the saved session with a broker, or nil if no one is logged in. It
// rejects a file that other users can read.
func (a *app) savedFor(server string, now time.Time) (*savedSession, error) {
	path, err := a.sessionFile()
	if err != nil {
		return nil, nil // no home directory, so no session
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reading the session: %w", err)
	case !info.Mode().IsRegular() || runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("other users can read %s: remove it and log in again", path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the session: %w", err)
	}
	var s savedSession
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("%s is damaged: remove it and log in again", path)
	}
	if s.Server != server || !now.Before(s.Expires) {
		return nil, nil
	}
	return &s, nil
}

// save stores a session atomically, readable only by its user.
func (a *app) save(s savedSession) error {
	path, err := a.sessionFile()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("saving the session: %w", err)
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "session-*") // mode 0600
	if err != nil {
		return fmt.Errorf("saving the session: %w", err)
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("saving the session: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

// forget removes the saved session.
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
		Short: "Log in as a person, to approve, review and view",
		Long: `login opens your browser, where you log in with your provider and allow this
terminal to act for you. On a computer without a browser, --device prints a code
to type into a browser on another computer. login saves the session in a file
of mode 0600 until the session expires or you run "broker logout".`,
		Example: `  broker login
  broker login --device`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeoutCause(c.Context(), loginWait, errors.New("the login took too long"))
			defer cancel()
			return a.withAnonymous(ctx, func(ctx context.Context, client *api.Client, server string) error {
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
					fmt.Fprintf(w, "logged in as\t%s\n", printable(cmp.Or(s.Name, s.Person)))
					fmt.Fprintf(w, "valid until\t%s, or until unused for %s\n", clock(s.ExpiresAt), s.IdleAfter)
				})
			})
		},
	}
	c.Flags().BoolVar(&device, "device", false, "print a code to type into a browser on another computer")
	c.Flags().BoolVar(&quiet, "no-browser", false, "print the address without opening a browser")
	a.client.add(c)
	return c
}

// loggedIn is the output of login. It has no token.
type loggedIn struct {
	Person    string    `json:"person"`
	Name      string    `json:"name,omitempty"`
	ExpiresAt time.Time `json:"expires_at"`
}

// loginWait bounds the time for a login.
const loginWait = 10 * time.Minute

func (a *app) logoutCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "logout",
		Short:   "End the session of this terminal",
		Example: `  broker logout`,
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			err := a.withPerson(c.Context(), func(ctx context.Context, client *api.Client) error { return client.CloseSession(ctx) })
			if errors.Is(err, errNotLoggedIn) || errors.Is(err, api.Unauthenticated) {
				err = nil // the session has ended already
			}
			return errors.Join(err, a.forget())
		},
	}
	a.client.add(c)
	return c
}

// loginByDevice prints a code and polls until the person has allowed or refused the
// login (RFC 8628).
func (a *app) loginByDevice(ctx context.Context, client *api.Client) (*api.Session, error) {
	d, err := client.BeginDevice(ctx)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(a.err, "Open %s\nand type the code  %s\n", d.VerificationURI, d.UserCode)
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

// loginByBrowser has the browser deliver a code to a port on the loopback interface
// (RFC 8252, section 7.3).
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
		return nil, errors.New("this broker has no logins: its configuration has no OpenID provider (attest.people)")
	}
	where := about.Pages + "terminal?" + query.Encode()
	fmt.Fprintf(a.err, "Log in with your browser:\n  %s\n", where)
	if open {
		openBrowser(ctx, where)
	}
	code, err := awaitCode(ctx, l, state)
	if err != nil {
		return nil, err
	}
	return client.OpenSession(ctx, api.Login{Code: code, Verifier: verifier})
}

// awaitCode returns the code that the browser delivers. Other programs on this
// computer can call the port, too; without the state they are rejected.
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
			http.Error(w, "The terminal is not waiting for this login.", http.StatusBadRequest)
			return
		}
		got, page := answer{code: query.Get("code")}, "Continue in the terminal. You can close this page."
		if got.code == "" {
			got.err, page = errors.New("the login was refused in the browser"), "You refused the login of the terminal. You can close this page."
		}
		fmt.Fprintln(w, page)
		select {
		case answers <- got:
		default:
		}
	})}
	go func() { _ = server.Serve(l) }() // ends with Shutdown
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

// openBrowser tries to open the browser. It ignores errors, because the address is
// printed, too.
func openBrowser(ctx context.Context, where string) {
	command := map[string][]string{"darwin": {"open"}, "windows": {"rundll32", "url.dll,FileProtocolHandler"}}[runtime.GOOS]
	if command == nil {
		command = []string{"xdg-open"}
	}
	_ = exec.CommandContext(ctx, command[0], append(command[1:], where)...).Start()
}

// errNotLoggedIn means that a command needs a person's session.
var errNotLoggedIn = errors.New(`you are not logged in: run "broker login"`)

// withPerson calls f with a client in the session of the person who is logged in.
func (a *app) withPerson(ctx context.Context, f func(context.Context, *api.Client) error) error {
	cfg, err := a.personConfig()
	if err != nil {
		return err
	}
	return a.withConfig(ctx, cfg, f)
}

// personConfig is the configuration for the person who is logged in.
func (a *app) personConfig() (clientConfig, error) {
	cfg, err := a.anonymousConfig()
	if err != nil {
		return cfg, err
	}
	s, err := a.savedFor(cfg.server, time.Now())
	if err != nil {
		return cfg, err
	}
	if s == nil {
		return cfg, errNotLoggedIn
	}
	cfg.token, cfg.caller = s.Token, s.Person
	return cfg, nil
}

// withAnonymous calls f with a client that sends no proof.
func (a *app) withAnonymous(ctx context.Context, f func(ctx context.Context, client *api.Client, server string) error) error {
	cfg, err := a.anonymousConfig()
	if err != nil {
		return err
	}
	return a.withConfig(ctx, cfg, func(ctx context.Context, client *api.Client) error { return f(ctx, client, cfg.server) })
}

// anonymousConfig is the configuration for a client that sends no proof. The client
// verifies the broker with its SPIFFE bundle, BROKER_CA or the system's authorities.
func (a *app) anonymousConfig() (clientConfig, error) {
	cfg := clientConfig{
		server:   a.server(),
		brokerID: cmp.Or(a.client.brokerID, a.getenv("BROKER_ID")),
		ca:       a.getenv("BROKER_CA"), socket: a.getenv("SPIFFE_ENDPOINT_SOCKET"), anonymous: true,
	}
	if err := checkServer(cfg.server); err != nil {
		return cfg, err
	}
	if cfg.ca == "" && cfg.socket != "" && cfg.brokerID == "" {
		return cfg, usage("set --broker-id or BROKER_ID: a session is sent only to a broker with a known SPIFFE ID")
	}
	return cfg, nil
}
