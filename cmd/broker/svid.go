package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/attest"
)

// svidFlags locate a Workload API and select an identity.
type svidFlags struct {
	socket, id string
	timeout    time.Duration
}

func (f *svidFlags) add(c *cobra.Command) {
	f.timeout = workloadAPIWait
	c.Flags().StringVar(&f.socket, "socket", "", "the Workload API, a path or unix://… (default: SPIFFE_ENDPOINT_SOCKET)")
	c.Flags().StringVar(&f.id, "spiffe-id", "", "which identity, if this process has several (default: the agent's first)")
	c.Flags().Var((*positiveFlag)(&f.timeout), "timeout", "how long to wait for the agent and a registration (default: 10s)")
	completes(c, "spiffe-id", cobra.NoFileCompletions)
	c.ValidArgsFunction = cobra.NoFileCompletions
}

// address returns the address of the Workload API. It reports at once what waiting can't
// resolve.
func (f *svidFlags) address(a *app) (string, error) {
	address, setting := f.socket, "--socket"
	if address == "" {
		setting = "SPIFFE_ENDPOINT_SOCKET"
		address = a.getenv(setting)
	}
	switch {
	case address == "":
		return "", usage("set the Workload API: --socket or SPIFFE_ENDPOINT_SOCKET")
	case filepath.IsAbs(address):
		address = "unix://" + address
	}
	if err := attest.CheckWorkloadAPI(address); err != nil {
		return "", usage("the Workload API %q (%s): %v", address, setting, err)
	}
	return address, checkSocket(address, setting)
}

func (a *app) svidCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "svid",
		Short: "Fetch your own SVIDs from a SPIFFE Workload API",
		Long: `svid fetches SVIDs of this process from a SPIFFE Workload API, such as that of
a SPIRE agent or of "broker dev". Programs without a SPIFFE library use them to
call the broker's API, or any other service that accepts SVIDs.

` + exitHelp,
		Args: exactly(0, "a command: jwt or x509"),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.svidJWTCommand(), a.svidX509Command())
	return c
}

func (a *app) svidJWTCommand() *cobra.Command {
	var f svidFlags
	var audiences []string
	c := &cobra.Command{
		Use:   "jwt --audience AUDIENCE",
		Short: "Fetch a JWT-SVID and print it",
		Long: `jwt prints a JWT-SVID and nothing else. It is valid for minutes and
authenticates its bearer, so fetch one for each call and do not store it.

The audience of the broker is its URL, unless its operator has set audiences. A
token with several audiences can be replayed by each of them, and the broker
refuses it.`,
		Example: `  broker svid jwt --audience "$BROKER_URL"
  broker svid jwt --audience "$BROKER_URL" | sed 's/^/Authorization: Bearer /' |
    curl --cacert bundle.pem -H @- "$BROKER_URL/v1/whoami"
  broker svid jwt --audience https://api.acme.test -o json`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			for _, audience := range audiences {
				if audience == "" {
					return usage("--audience is empty: name the service that will receive the token")
				}
			}
			if len(audiences) == 0 {
				return usage("--audience is missing: name the service that will receive the token, such as --audience \"$BROKER_URL\"")
			}
			return a.svidJWT(c.Context(), f, audiences)
		},
	}
	c.Flags().StringSliceVar(&audiences, "audience", nil, "who will accept the token; repeatable, or separated by commas")
	completes(c, "audience", cobra.NoFileCompletions)
	f.add(c)
	return c
}

// A jwtOutput is the JSON form of a JWT-SVID.
type jwtOutput struct {
	ID       string    `json:"spiffe_id"`
	Audience []string  `json:"audience"`
	Expires  time.Time `json:"expires_at"`
	Hint     string    `json:"hint,omitempty"`
	Token    string    `json:"token"`
}

func (a *app) svidJWT(ctx context.Context, f svidFlags, audiences []string) error {
	fetch := func(ctx context.Context, address string) ([]attest.FetchedJWT, error) {
		return attest.FetchJWT(ctx, address, f.id, audiences)
	}
	s, err := fetchSVID(ctx, a, f, fetch, func(s attest.FetchedJWT) string { return s.ID })
	if err != nil {
		return err
	}
	return a.print(jwtOutput{s.ID, s.Audience, s.Expires.UTC(), s.Hint, s.Token}, func(w io.Writer) { fmt.Fprintln(w, s.Token) })
}

// fetchSVID fetches SVIDs from the Workload API of the flags, and returns the one of the
// selected identity.
func fetchSVID[T any](ctx context.Context, a *app, f svidFlags, fetch func(context.Context, string) ([]T, error), idOf func(T) string) (svid T, err error) {
	address, err := f.address(a)
	if err != nil {
		return svid, err
	}
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	all, err := fetch(ctx, address)
	if err != nil {
		return svid, err
	}
	var ids []string
	for _, svid := range all {
		if f.id == "" || idOf(svid) == f.id { // the first is the default
			return svid, nil
		}
		ids = append(ids, idOf(svid))
	}
	return svid, fmt.Errorf("this process has no identity %s; the agent offers %s", f.id, strings.Join(ids, ", "))
}

func (a *app) svidX509Command() *cobra.Command {
	var f svidFlags
	var to x509Files
	c := &cobra.Command{
		Use:   "x509",
		Short: "Fetch an X.509-SVID with its key and trust bundle",
		Long: `x509 prints an X.509-SVID and its private key in PEM. With --cert, --key,
--bundle or --write, it writes what they name into files instead; "-" is
standard output. The certificate comes with its intermediates. The bundle has
the authorities of its trust domain, with which a client verifies other
workloads.

The file of the key is only for you (mode 0600). A file that exists is replaced
only if an earlier "broker svid" wrote it. An X.509-SVID expires, usually within
an hour: fetch it again before that.`,
		Example: `  broker svid x509 --cert svid.pem --key svid.key --bundle bundle.pem
  broker svid x509 --write /run/report        # svid.0.pem, svid.0.key, bundle.0.pem
  broker svid x509 --bundle -                 # the authorities alone
  broker svid x509 -o json | jq -r .expires_at`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error { return a.svidX509(c.Context(), f, to) },
	}
	c.Flags().StringVar(&to.cert, "cert", "", "the file for the certificate and its intermediates")
	c.Flags().StringVar(&to.key, "key", "", "the file for the private key")
	c.Flags().StringVar(&to.bundle, "bundle", "", "the file for the authorities of the trust domain")
	c.Flags().StringVar(&to.dir, "write", "", "a folder for all three, with the names that spire-agent uses")
	f.add(c)
	return c
}

// An x509Output is the JSON form of an X.509-SVID. Without files, it has their content.
type x509Output struct {
	ID          string            `json:"spiffe_id"`
	Expires     time.Time         `json:"expires_at"`
	Hint        string            `json:"hint,omitempty"`
	Certificate string            `json:"certificate,omitempty"`
	Key         string            `json:"private_key,omitempty"`
	Bundle      string            `json:"bundle,omitempty"`
	Federated   map[string]string `json:"federated_bundles,omitempty"`
	Files       []string          `json:"files,omitempty"`
}

func (a *app) svidX509(ctx context.Context, f svidFlags, to x509Files) error {
	files, err := to.check()
	if err != nil {
		return err
	}
	s, err := fetchSVID(ctx, a, f, attest.FetchX509, func(s attest.FetchedX509) string { return s.ID })
	if err != nil {
		return err
	}
	return a.writeX509(s, files)
}

// writeX509 writes an SVID into the files, or prints it if there are none.
func (a *app) writeX509(s attest.FetchedX509, files []*svidFile) error {
	out := x509Output{ID: s.ID, Expires: s.Expires.UTC(), Hint: s.Hint}
	if len(files) == 0 {
		out.Certificate, out.Key, out.Bundle = string(s.Certificate), string(s.Key), string(s.Bundle)
		out.Federated = map[string]string{}
		for domain, bundle := range s.Federated {
			out.Federated[domain] = string(bundle)
		}
		return a.print(out, func(w io.Writer) { fmt.Fprintf(w, "%s%s", s.Certificate, s.Key) })
	}
	printed := false
	for _, f := range files {
		content := f.content(s)
		if f.path == standardOutput {
			if _, err := a.out.Write(content); err != nil {
				return err
			}
			printed = true
			continue
		}
		if err := f.write(string(content)); err != nil {
			return err
		}
		out.Files = append(out.Files, f.path)
	}
	if printed {
		return nil
	}
	return a.print(out, func(w io.Writer) {
		fmt.Fprintf(w, "identity\t%s\n", s.ID)
		fmt.Fprintf(w, "expires\t%s (in %s)\n", clock(s.Expires), timeLeft(time.Until(s.Expires)))
		for _, path := range out.Files {
			fmt.Fprintf(w, "written\t%s\n", path)
		}
	})
}

// standardOutput is the name of standard output in the flags of files.
const standardOutput = "-"

// x509Files are the flags that name files.
type x509Files struct{ cert, key, bundle, dir string }

// An svidFile is a file for a part of an X.509-SVID.
type svidFile struct {
	ownFile
	content func(attest.FetchedX509) []byte
}

// check returns the files. It reports those that cannot be written before anything is
// fetched.
func (x x509Files) check() ([]*svidFile, error) {
	if x.dir != "" && x.cert+x.key+x.bundle != "" {
		return nil, usage("--write names all files: omit --cert, --key and --bundle")
	}
	if x.dir != "" {
		x = x509Files{cert: filepath.Join(x.dir, "svid.0.pem"), key: filepath.Join(x.dir, "svid.0.key"), bundle: filepath.Join(x.dir, "bundle.0.pem")}
	}
	var files []*svidFile
	seen := map[string]bool{}
	for _, f := range []*svidFile{ // the certificate last: servers that watch it find its key
		{ownFile{flag: "--bundle", path: x.bundle, public: true}, func(s attest.FetchedX509) []byte { return s.Bundle }},
		{ownFile{flag: "--key", path: x.key}, func(s attest.FetchedX509) []byte { return s.Key }},
		{ownFile{flag: "--cert", path: x.cert, public: true}, func(s attest.FetchedX509) []byte { return s.Certificate }},
	} {
		if f.path == "" {
			continue
		}
		f.writer, f.mark = "broker svid", "svid"
		if f.path != standardOutput {
			if seen[filepath.Clean(f.path)] {
				return nil, usage("%s is named twice: each part needs its own file", f.path)
			}
			seen[filepath.Clean(f.path)] = true
			if err := f.check(); err != nil {
				return nil, err
			}
		}
		files = append(files, f)
	}
	return files, nil
}
