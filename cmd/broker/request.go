package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// askFlags are those of every command that asks for something.
type askFlags struct {
	scopes        []string
	ttl, duration time.Duration
	why, ticket   string
	parameters    parameterFlag
	wait          time.Duration
	breakGlass    bool
	notBefore     string
	extends       string
}

// A parameterFlag takes each value as it is, whatever is in it.
type parameterFlag map[string]string

// String is empty: there is no default.
func (parameterFlag) String() string { return "" }

// Type is what help calls the value.
func (parameterFlag) Type() string { return "name=value" }

// Set adds a parameter.
func (p *parameterFlag) Set(text string) error {
	name, value, ok := strings.Cut(text, "=")
	if _, twice := (*p)[name]; !ok || name == "" || twice {
		return errors.New("give each parameter once, as name=value")
	}
	if *p == nil {
		*p = parameterFlag{}
	}
	(*p)[name] = value
	return nil
}

// A positiveFlag is a duration that is given, or left out: never nothing.
type positiveFlag time.Duration

// String is empty: there is no default.
func (*positiveFlag) String() string { return "" }

// Type is what help calls the value.
func (*positiveFlag) Type() string { return "duration" }

// Set takes a duration.
func (d *positiveFlag) Set(text string) error {
	return (*api.Duration)(d).UnmarshalText([]byte(text))
}

func (f *askFlags) add(c *cobra.Command) {
	f.addAsked(c)
	c.Flags().DurationVar(&f.wait, "wait", 0, "how long to wait for people to approve (default: not at all)")
	c.Flags().StringVar(&f.notBefore, "not-before", "", "when the grant is to start, as 2026-01-31T12:00:00Z")
	c.Flags().StringVar(&f.extends, "extends", "", "an earlier request that this one goes on")
}

// addAsked adds what policy is asked about.
func (f *askFlags) addAsked(c *cobra.Command) {
	c.Flags().StringSliceVar(&f.scopes, "scope", nil, "a scope; may be given more than once (default: the entitlement's default scopes)")
	c.Flags().Var((*positiveFlag)(&f.ttl), "ttl", "how long the credential lives (default: the entitlement's)")
	c.Flags().Var((*positiveFlag)(&f.duration), "duration", "for how long credentials may be collected (default: the entitlement's)")
	c.Flags().StringVar(&f.why, "why", "", "the justification, shown to approvers and kept in the log")
	c.Flags().StringVar(&f.ticket, "ticket", "", "the ticket that this is for")
	c.Flags().Var(&f.parameters, "param", "a parameter of the entitlement, name=value; may be given more than once")
	c.Flags().BoolVar(&f.breakGlass, "break-glass", false, "an emergency: no approval now, people review it afterwards")
}

func (f *askFlags) ask(entitlement string) (api.Ask, error) {
	if f.wait < 0 {
		return api.Ask{}, usage("--wait is a duration such as 15m")
	}
	var start time.Time
	if f.notBefore != "" {
		var err error
		if start, err = time.Parse(time.RFC3339, f.notBefore); err != nil {
			return api.Ask{}, usage("--not-before is a time such as 2026-01-31T12:00:00Z")
		}
	}
	return api.Ask{
		BreakGlass: f.breakGlass, NotBefore: start.UTC(), Extends: f.extends,
		Entitlement: entitlement, Scopes: f.scopes, TTL: api.Duration(f.ttl), Duration: api.Duration(f.duration),
		Justification: f.why, Ticket: f.ticket, Parameters: f.parameters,
	}, nil
}

func (a *app) requestCommand() *cobra.Command {
	var f askFlags
	var dry, file bool
	c := &cobra.Command{
		Use:   "request ENTITLEMENT",
		Short: "Ask for a credential, and print it if policy approves",
		Long: `request asks for a credential. If policy approves by itself, the credential is
printed, once: the broker does not keep it. If people have to approve, the
request's id is printed; come back with "broker collect ID".

` + credentialHelp + exitHelp,
		Example: `  broker request tickets-api --scope tickets:read --why "triage of INC-4711"
  broker request tickets-api --scope tickets:close --why "duplicates" --wait 30m
  broker request tickets-api --scope tickets:read -o json | jq -r .secret.token
  broker request orders-db-ro -o pgpass >> ~/.pgpass
  broker request tickets-api --scope tickets:close --dry-run`,
		Args:              exactly(1, "one entitlement"),
		ValidArgsFunction: a.completeEntitlement,
		RunE: func(c *cobra.Command, args []string) error {
			ask, err := f.ask(args[0])
			if err != nil {
				return err
			}
			ask.DryRun = dry
			return a.session(c.Context(), func(ctx context.Context, client *api.Client) error {
				if dry || file {
					r, err := client.Ask(ctx, ask)
					if err != nil {
						return err
					}
					return a.printRequest(r)
				}
				credential, err := a.obtain(ctx, client, ask, f.wait)
				if err != nil {
					return err
				}
				return a.handOver(client, credential, a.printCredential)
			})
		},
	}
	f.add(c)
	completes(c, "scope", a.completeScope)
	c.Flags().BoolVar(&dry, "dry-run", false, "decide and say what would happen, but file nothing")
	c.Flags().BoolVar(&file, "file-only", false, "file the request without collecting a credential")
	a.client.addPerson(c)
	return c
}

// obtain asks, waits for people if it is to, and collects.
func (a *app) obtain(ctx context.Context, client *api.Client, ask api.Ask, wait time.Duration) (*api.Credential, error) {
	credential, pending, err := client.AskAndCollect(ctx, ask)
	if err != nil || credential != nil {
		return credential, err
	}
	return a.collectWhenApproved(ctx, client, pending, wait)
}

// collectWhenApproved waits until a request is decided and collects.
func (a *app) collectWhenApproved(ctx context.Context, client *api.Client, r *api.Request, wait time.Duration) (*api.Credential, error) {
	if r.Status == api.StatusPending && wait > 0 {
		if interactive(a.err) {
			fmt.Fprintf(a.err, "request %s waits: %s\n", r.ID, waitsFor(r)) // somebody may have to be told
		}
		var err error
		if r, err = a.await(ctx, client, r, time.Now().Add(wait)); err != nil {
			return nil, err
		}
	}
	if r.Status == api.StatusPending {
		return nil, &api.Error{Code: api.Pending, RequestID: r.ID, Detail: waitsFor(r) + `; come back with "broker collect ` + r.ID + `"`}
	}
	credential, err := client.Collect(ctx, r.ID)
	if err != nil && exitCode(err) == exitUnreachable {
		err = &staysError{err, r.ID}
	}
	return credential, err
}

// A staysError is about a request that can be gone on with when the broker can be
// reached again.
type staysError struct {
	err error
	id  string
}

func (e *staysError) Error() string { return e.err.Error() + "\n" + e.advice() }
func (e *staysError) Unwrap() error { return e.err }

func (e *staysError) advice() string {
	return fmt.Sprintf("the request stays: come back with \"broker collect %s\"", e.id)
}

// await gives a request once it is decided, or as it is at the deadline. A broker
// that is away meanwhile is asked again.
func (a *app) await(ctx context.Context, client *api.Client, r *api.Request, deadline time.Time) (*api.Request, error) {
	const shortest, longest = time.Second, 30 * time.Second
	show := func(string, ...any) {}
	if interactive(a.err) {
		show = func(format string, args ...any) { fmt.Fprintf(a.err, "\r\x1b[K"+format, args...) }
	}
	defer show("")
	var lost error
	for pause := shortest; r.Status == api.StatusPending; {
		left := time.Until(deadline)
		switch {
		case left <= 0 && lost != nil:
			return nil, &staysError{lost, r.ID}
		case left <= 0:
			return r, nil
		case lost != nil:
			show("the broker can't be reached, and is tried again (%s left)", broker.Short(left.Round(time.Second)))
		default:
			show("%s (%s left)", waitsFor(r), broker.Short(left.Round(time.Second)))
		}
		next, err := client.Await(ctx, r.ID, r.Version, min(left, longest))
		switch {
		case err == nil:
			r, lost, pause = next, nil, shortest
			continue
		case ctx.Err() != nil:
			return nil, &api.Error{Code: api.Pending, RequestID: r.ID, Detail: `stopped waiting; it still waits: "broker collect ` + r.ID + `"`}
		case !api.Transient(err):
			return nil, err
		}
		lost = err
		select {
		case <-ctx.Done(): // the next call says so
		case <-time.After(min(pause, left)):
		}
		pause = min(2*pause, longest)
	}
	show("%s\n", decidedBy(r))
	return r, nil
}

// decidedBy says how the waiting ended.
func decidedBy(r *api.Request) string {
	var people []string
	for _, v := range r.Approvals.Given {
		people = append(people, plainly(v.Person))
	}
	if len(people) == 0 {
		return r.Status
	}
	return r.Status + " by " + strings.Join(people, ", ")
}

// waitsFor says whose approval a request lacks.
func waitsFor(r *api.Request) string {
	var needs []string
	for _, n := range r.Approvals.Needed {
		if n.Have < n.Count {
			needs = append(needs, fmt.Sprintf("%d of %s", n.Count-n.Have, n.Group))
		}
	}
	return "it needs the approval of " + strings.Join(needs, " and ")
}

func (a *app) collectCommand() *cobra.Command {
	var wait time.Duration
	c := &cobra.Command{
		Use:   "collect REQUEST",
		Short: "Collect a credential of a request that was approved",
		Example: `  broker collect req_0658sg2b7puh5u0qv0s9k8g6nk
  broker collect req_0658sg2b7puh5u0qv0s9k8g6nk --wait 10m -o json`,
		RunE: func(c *cobra.Command, args []string) error {
			return a.session(c.Context(), func(ctx context.Context, client *api.Client) error {
				r, err := client.Request(ctx, args[0])
				if err != nil {
					return err
				}
				credential, err := a.collectWhenApproved(ctx, client, r, wait)
				if err != nil {
					return err
				}
				return a.handOver(client, credential, a.printCredential)
			})
		},
	}
	takesID(c, "request")
	c.Flags().DurationVar(&wait, "wait", 0, "how long to wait for people to approve (default: not at all)")
	a.client.addPerson(c)
	return c
}

func (a *app) withdrawCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "withdraw REQUEST",
		Short:   "Take back a request that nobody has approved yet",
		Example: `  broker withdraw req_0658sg2b7puh5u0qv0s9k8g6nk`,
		RunE: func(c *cobra.Command, args []string) error {
			return a.session(c.Context(), func(ctx context.Context, client *api.Client) error {
				r, err := client.Withdraw(ctx, args[0])
				if err != nil {
					return err
				}
				return a.printRequest(r)
			})
		},
	}
	takesID(c, "request")
	a.client.addPerson(c)
	return c
}

func (a *app) requestsCommand() *cobra.Command {
	var f api.RequestFilter
	c := &cobra.Command{
		Use:               "requests [REQUEST]",
		Short:             "List requests, newest first, or show one",
		ValidArgsFunction: cobra.NoFileCompletions,
		Example: `  broker requests
  broker requests --status pending --requester '*'
  broker requests req_0658sg2b7puh5u0qv0s9k8g6nk -o json`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 || len(args) == 1 && !isID("request", args[0]) {
				return usage("requests takes at most one id of a request, req_…")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			return a.session(c.Context(), func(ctx context.Context, client *api.Client) error {
				if len(args) == 1 {
					r, err := client.Request(ctx, args[0])
					if err != nil {
						return err
					}
					return a.printRequest(r)
				}
				page, err := client.Requests(ctx, f)
				if err != nil {
					return err
				}
				return a.print(page, func(w io.Writer) { writeRequests(w, page) })
			})
		},
	}
	c.Flags().StringVar(&f.Status, "status", "", "pending, approved, denied, withdrawn, lapsed or ended")
	c.Flags().StringVar(&f.Requester, "requester", "", "a SPIFFE ID, a person as login/ana, or '*' for everybody whose requests you may view (default: you)")
	c.Flags().StringVar(&f.Entitlement, "entitlement", "", "of one entitlement only")
	c.Flags().StringVar(&f.Cursor, "cursor", "", "where the page before ended")
	c.Flags().IntVar(&f.Limit, "limit", 0, "how many (default 50, at most 200)")
	completes(c, "status", oneOf(api.StatusPending, api.StatusApproved, api.StatusDenied, api.StatusWithdrawn, api.StatusLapsed, api.StatusEnded))
	completes(c, "entitlement", a.completeEntitlement)
	a.client.addPerson(c)
	return c
}

func writeRequests(w io.Writer, page *api.RequestPage) {
	if len(page.Requests) == 0 {
		fmt.Fprintln(w, "no requests")
		return
	}
	fmt.Fprintln(w, "REQUEST\tSTATUS\tENTITLEMENT\tSCOPES\tREQUESTER\tCREATED")
	for _, r := range page.Requests {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.Status, r.Entitlement, strings.Join(r.Scopes, " "), r.Requester, clock(r.CreatedAt))
	}
	if page.Next != "" {
		fmt.Fprintf(w, "more: --cursor %s\n", page.Next)
	}
}

func (a *app) printRequest(r *api.Request) error {
	return a.print(r, func(w io.Writer) { writeRequest(w, r) })
}

// showRequest shows a request for people, whatever -o says.
func (a *app) showRequest(to io.Writer, r *api.Request) {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	writeRequest(w, r)
	_ = w.Flush() // to a terminal
}

// clock shows a time as people read it, in UTC.
func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }
