package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/broker"
)

// The admin socket is for root, and whoever runs the broker, on the broker's
// own machine: it works when the identity provider is down. What is done by it
// is recorded as done by "admin-socket/<user id>".

// An admin is what can be done by the admin socket, beside the API's own
// operations for operators.
type admin interface {
	reloadBy(ctx context.Context, who broker.Identity) (string, error)
	resealKeys(ctx context.Context) (int, error)
	listKeys() any
}

// adminListener listens on a socket that nobody else can connect to.
func adminListener(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("making the admin socket's folder: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing the old admin socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on the admin socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("closing the admin socket to others: %w", err), l.Close())
	}
	return l, nil
}

type peerKey struct{}

// adminContext remembers who connected to the socket.
func adminContext(ctx context.Context, c net.Conn) context.Context {
	uid, err := peerUID(c)
	if err != nil {
		uid = -1
	}
	return context.WithValue(ctx, peerKey{}, uid)
}

// operatorOf gives who calls by the admin socket: root, or the user that the
// broker runs as. The socket's mode keeps others out; this is a second wall.
func operatorOf(r *http.Request) (broker.Identity, error) {
	uid, ok := r.Context().Value(peerKey{}).(int)
	if !ok || uid != 0 && uid != os.Geteuid() {
		return broker.Identity{}, &broker.Refusal{Err: broker.ErrUnauthenticated, Detail: "the admin socket is for root and the broker's own user"}
	}
	return broker.Identity{
		ID: fmt.Sprintf("admin-socket/%d", uid), Kind: broker.KindOperator,
		Proof: broker.Proof{Method: broker.MethodAdminSocket, Expires: time.Now().Add(time.Hour)},
	}, nil
}

// adminHandler puts the broker process's own operations before those of the
// API.
func adminHandler(a admin, rest http.Handler) http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, f func(context.Context, broker.Identity) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			who, err := operatorOf(r)
			var answer any
			if err == nil {
				answer, err = f(r.Context(), who)
			}
			status := http.StatusOK
			if err != nil {
				status, answer = http.StatusUnprocessableEntity, map[string]string{"error": err.Error()}
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(answer)
		})
	}
	handle("POST /admin/reload", func(ctx context.Context, who broker.Identity) (any, error) {
		revision, err := a.reloadBy(ctx, who)
		return map[string]string{"revision": revision}, err
	})
	handle("POST /admin/keys/reseal", func(ctx context.Context, _ broker.Identity) (any, error) {
		n, err := a.resealKeys(ctx)
		return map[string]int{"resealed": n}, err
	})
	handle("GET /admin/keys", func(context.Context, broker.Identity) (any, error) { return a.listKeys(), nil })
	mux.Handle("/", rest)
	return mux
}

// adminCall calls the admin socket of the broker on this machine.
func adminCall(ctx context.Context, socket, method, path string, into any) error {
	client := &http.Client{Timeout: 30 * time.Second, Transport: adminTransport(socket)}
	req, err := http.NewRequestWithContext(ctx, method, "http://admin"+path, nil)
	if err != nil {
		return fmt.Errorf("calling the admin socket: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("calling the admin socket: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("reading the admin socket's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var failed struct{ Error, Detail string }
		_ = json.Unmarshal(body, &failed)
		return fmt.Errorf("the broker refused: %s%s", failed.Error, failed.Detail)
	}
	return json.Unmarshal(body, into)
}

// adminTransport connects to the admin socket, whatever a URL says.
func adminTransport(socket string) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err != nil {
			return nil, &noAdmin{socket, err}
		}
		return c, nil
	}}
}

// A noAdmin is an admin socket at which nothing answers. It is shown alone: the
// URLs around it are made up, since HTTP wants some.
type noAdmin struct {
	socket string
	err    error
}

func (e *noAdmin) Error() string {
	why := e.err
	var call *net.OpError
	if errors.As(e.err, &call) {
		why = call.Err
	}
	if errors.Is(why, fs.ErrPermission) {
		return fmt.Sprintf("the admin socket %s is for root and the broker's own user (%v)", e.socket, why)
	}
	return fmt.Sprintf("nothing answers at the admin socket %s (%v): name it by --admin-socket or BROKER_ADMIN_SOCKET", e.socket, why)
}

func (e *noAdmin) Unwrap() []error { return []error{errUnreachable, e.err} }

// usualAdminSocket is where the examples put it, and where it is looked for.
const usualAdminSocket = "/run/broker/admin.sock"

// adminSocket finds the socket: the flag, the environment, or the usual place.
func (a *app) adminSocket(flag string) string {
	for _, path := range []string{flag, a.getenv("BROKER_ADMIN_SOCKET")} {
		if path != "" {
			return path
		}
	}
	return usualAdminSocket
}

func (a *app) reloadCommand() *cobra.Command {
	var socket string
	c := &cobra.Command{
		Use:   "reload",
		Short: "Have the running broker read its policies and catalogue again",
		Long: `reload has the broker on this machine read its operator's file and policies
again: all of them or, if anything is wrong, none. The new rules are recorded in
the log before the first decision under them. SIGHUP does the same.`,
		Example: `  broker reload
  broker reload --admin-socket ./world/admin.sock`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			var answer struct {
				Revision string `json:"revision"`
			}
			if err := adminCall(c.Context(), a.adminSocket(socket), http.MethodPost, "/admin/reload", &answer); err != nil {
				return err
			}
			return a.print(answer, func(w io.Writer) { fmt.Fprintf(w, "revision %s decides from here on\n", answer.Revision) })
		},
	}
	a.adminSocketFlag(c, &socket)
	return c
}

func (a *app) keysCommand() *cobra.Command {
	var socket string
	c := &cobra.Command{
		Use:   "keys",
		Short: "List the broker's signing keys",
		Example: `  broker keys
  broker keys reseal`,
		Args: exactly(0, "no arguments, or reseal"),
		RunE: func(c *cobra.Command, _ []string) error {
			var keys []keyLine
			if err := adminCall(c.Context(), a.adminSocket(socket), http.MethodGet, "/admin/keys", &keys); err != nil {
				return err
			}
			return a.print(keys, func(w io.Writer) {
				fmt.Fprintln(w, "KEY\tKID\tALGORITHM\tSIGNS FROM\tRETIRES")
				for _, k := range keys {
					retires := "when its successor has signed long enough"
					if !k.Retires.IsZero() {
						retires = clock(k.Retires)
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", k.ID, k.KID, k.Algorithm, clock(k.Signs), retires)
				}
			})
		},
	}
	reseal := &cobra.Command{
		Use:   "reseal",
		Short: "Seal every key with the first of seal_keys",
		Long: `reseal rotates the seal key: put the new one first in seal_keys and restart, run
this, then take the old one away.`,
		Example: `  broker keys reseal`,
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			var answer struct {
				Resealed int `json:"resealed"`
			}
			if err := adminCall(c.Context(), a.adminSocket(socket), http.MethodPost, "/admin/keys/reseal", &answer); err != nil {
				return err
			}
			return a.print(answer, func(w io.Writer) { fmt.Fprintf(w, "%d keys were sealed anew\n", answer.Resealed) })
		},
	}
	a.adminSocketFlag(c, &socket)
	c.AddCommand(reseal)
	return c
}

// A keyLine is a signing key as operators see it.
type keyLine struct {
	ID        string    `json:"id"`
	KID       string    `json:"kid"`
	Algorithm string    `json:"algorithm"`
	Published time.Time `json:"published_at"`
	Signs     time.Time `json:"signs_from"`
	Retires   time.Time `json:"retires_at,omitzero"`
}
