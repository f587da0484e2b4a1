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
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/internal/service"
)

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
		return fmt.Errorf("reading the answer of the admin socket: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var failed struct{ Error, Detail string }
		_ = json.Unmarshal(body, &failed)
		return fmt.Errorf("the broker refused: %s%s", failed.Error, failed.Detail)
	}
	return json.Unmarshal(body, into)
}

// adminTransport connects to the admin socket for every URL.
func adminTransport(socket string) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err != nil {
			return nil, &noAdmin{socket, err}
		}
		return c, nil
	}}
}

// A noAdmin means that nothing answers at the admin socket. It is printed without the
// errors around it, which name an invented URL.
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
	return fmt.Sprintf("no broker answers at the admin socket %s (%v): set --admin-socket or BROKER_ADMIN_SOCKET", e.socket, why)
}

func (e *noAdmin) Unwrap() []error { return []error{errUnreachable, e.err} }

// usualAdminSocket is the default of commands, and the socket of the examples.
const usualAdminSocket = "/run/broker/admin.sock"

// adminSocket returns the socket of the flag, of the environment, or the usual one.
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
		Short: "Reload the policies and the catalogue of the running broker",
		Long: `reload makes the broker on this machine read its operator's file and policies
again. If anything is wrong, the old rules stay in force. The log records the
new rules before the first decision under them. SIGHUP does the same.`,
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
			return a.print(answer, func(w io.Writer) { fmt.Fprintf(w, "revision %s is in force\n", answer.Revision) })
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
			var keys []service.SigningKey
			if err := adminCall(c.Context(), a.adminSocket(socket), http.MethodGet, "/admin/keys", &keys); err != nil {
				return err
			}
			return a.printTable(keys, func(w io.Writer) {
				fmt.Fprintln(w, "KEY\tKID\tALGORITHM\tSIGNS FROM\tRETIRES")
				for _, k := range keys {
					retires := "after its successor starts to sign"
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
		Long: `reseal is a step of rotating the seal key: put the new key first in seal_keys,
restart, run reseal, remove the old key, and restart.`,
		Example: `  broker keys reseal`,
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			var answer struct {
				Resealed int `json:"resealed"`
			}
			if err := adminCall(c.Context(), a.adminSocket(socket), http.MethodPost, "/admin/keys/reseal", &answer); err != nil {
				return err
			}
			return a.print(answer, func(w io.Writer) { fmt.Fprintf(w, "%d keys resealed\n", answer.Resealed) })
		},
	}
	a.adminSocketFlag(c, &socket)
	c.AddCommand(reseal)
	return c
}
