package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/agent"
	"accessbroker.internal/api"
	"accessbroker.internal/internal/config"
)

// askFlags are the flags of every command that files a request.
type askFlags struct {
	scopes        []string
	ttl, duration time.Duration
	why, ticket   string
	parameters    parameterFlag
	details       detailsFlag
	wait          time.Duration
	breakGlass    bool
	notBefore     string
	extends       string
	onBehalfOf    string // a file
	message       string
}

// A parameterFlag collects name=value pairs. Unlike pflag's map, it does not split a
// value at commas.
type parameterFlag map[string]string

// String returns "", because there is no default.
func (parameterFlag) String() string { return "" }

// Type returns the name of the value in help.
func (parameterFlag) Type() string { return "name=value" }

// Set adds a parameter.
func (p *parameterFlag) Set(text string) error {
	name, value, ok := strings.Cut(text, "=")
	if _, twice := (*p)[name]; !ok || name == "" || twice {
		return errors.New("write each parameter once, as name=value")
	}
	if *p == nil {
		*p = parameterFlag{}
	}
	(*p)[name] = value
	return nil
}

// A positiveFlag is a positive duration. Unlike pflag's duration, it rejects zero.
type positiveFlag time.Duration

// String returns "", because there is no default.
func (*positiveFlag) String() string { return "" }

// Type returns the name of the value in help.
func (*positiveFlag) Type() string { return "duration" }

// Set parses a duration.
func (d *positiveFlag) Set(text string) error {
	return (*api.Duration)(d).UnmarshalText([]byte(text))
}

func (f *askFlags) add(c *cobra.Command) {
	f.addPolicyInputs(c)
	addWait(c, &f.wait)
	c.Flags().StringVar(&f.notBefore, "not-before", "", "start of the grant, such as 2026-01-31T12:00:00Z (default: now)")
	c.Flags().StringVar(&f.extends, "extends", "", "the id of an earlier request that this one extends")
	c.Flags().StringVar(&f.onBehalfOf, "on-behalf-of", "", "a file with the token of whom the request is for: a person's ID-JAG or access token, or the broker token of an agent")
	c.Flags().StringVar(&f.message, "message", "", "one line by which approvers recognize the action, such as a code that you show to your user")
	_ = c.MarkFlagFilename("on-behalf-of")
}

func addWait(c *cobra.Command, wait *time.Duration) {
	c.Flags().DurationVar(wait, "wait", 0, "how long to wait for approval (default: don't wait)")
}

// addPolicyInputs adds the flags that a policy decision depends on.
func (f *askFlags) addPolicyInputs(c *cobra.Command) {
	c.Flags().StringSliceVar(&f.scopes, "scope", nil, "a scope; repeatable (default: the entitlement's default scopes)")
	c.Flags().Var((*positiveFlag)(&f.ttl), "ttl", "how long each credential is valid (default: the entitlement's)")
	c.Flags().Var((*positiveFlag)(&f.duration), "duration", "how long credentials can be collected (default: the entitlement's)")
	c.Flags().StringVar(&f.why, "why", "", "the justification, shown to approvers and recorded in the log")
	c.Flags().StringVar(&f.ticket, "ticket", "", "the ticket for this request")
	c.Flags().Var(&f.details, "detail", "what the token is good for, as an element of authorization_details (RFC 9396); repeatable")
	c.Flags().Var(&f.parameters, "param", "a parameter of the entitlement, as name=value; repeatable")
	c.Flags().BoolVar(&f.breakGlass, "break-glass", false, "emergency access: no approval now, a review afterwards")
}

func (f *askFlags) ask(entitlement string) (api.Ask, error) {
	if f.wait < 0 {
		return api.Ask{}, usage("--wait must be a duration such as 15m")
	}
	var start time.Time
	if f.notBefore != "" {
		var err error
		if start, err = time.Parse(time.RFC3339, f.notBefore); err != nil {
			return api.Ask{}, usage("--not-before must be a time such as 2026-01-31T12:00:00Z")
		}
	}
	subject, kind, err := f.subjectToken()
	if err != nil {
		return api.Ask{}, err
	}
	return api.Ask{
		SubjectToken: subject, SubjectType: kind,
		BreakGlass: f.breakGlass, NotBefore: start.UTC(), Extends: f.extends,
		Entitlement: entitlement, Scopes: f.scopes, TTL: api.Duration(f.ttl), Duration: api.Duration(f.duration),
		Justification: f.why, Ticket: f.ticket, BindingMessage: f.message, Parameters: f.parameters, AuthorizationDetails: f.details,
	}, nil
}

// subjectToken reads the token of whom the request is for. It is in a file, because other
// users of the machine can read arguments.
func (f *askFlags) subjectToken() (token, kind string, err error) {
	if f.onBehalfOf == "" {
		return "", "", nil
	}
	if token, err = config.ReadToken(f.onBehalfOf); err != nil {
		return "", "", fmt.Errorf("--on-behalf-of names a file with a token: %w", err)
	}
	if kind = api.SubjectTokenType(token); kind == "" {
		return "", "", usage("--on-behalf-of: %s has no ID-JAG (typ oauth-id-jag+jwt) and no JWT access token (typ at+jwt)", f.onBehalfOf)
	}
	return token, kind, nil
}

func (a *app) requestCommand() *cobra.Command {
	var f askFlags
	var dry, file bool
	c := &cobra.Command{
		Use:   "request ENTITLEMENT",
		Short: "Request a credential and print it",
		Long: `request files a request. If the request needs no approval, request prints the
credential. It does so once, because the broker does not store credentials. If
the request needs approval, request prints its id; run "broker collect ID" after
the approval.

` + credentialHelp + exitHelp,
		Example: `  broker request tickets-api --scope tickets:read --why "triage of INC-4711"
  broker request tickets-api --scope tickets:close --why "duplicates" --wait 30m
  broker request tickets-api --scope tickets:read -o json | jq -r .secret.token
  broker request orders-db-ro -o pgservice > service.conf
  PGSERVICEFILE=service.conf PGSERVICE=orders-db-ro psql -h db.acme.test orders
  broker request tickets-api --scope tickets:close --dry-run
  broker request tickets-api --scope tickets:read --on-behalf-of ana.jwt`,
		Args:              exactly(1, "one entitlement"),
		ValidArgsFunction: a.completeEntitlement,
		RunE: func(c *cobra.Command, args []string) error {
			if !dry && !file {
				return a.withCredential(c.Context(), args[0], f, a.handOver)
			}
			ask, err := f.ask(args[0])
			if err != nil {
				return err
			}
			ask.DryRun = dry
			return a.withClient(c.Context(), func(ctx context.Context, client *api.Client) error {
				r, err := client.Ask(ctx, ask)
				if err != nil {
					return err
				}
				return a.printRequest(r)
			})
		},
	}
	f.add(c)
	completes(c, "scope", a.completeScope)
	c.Flags().BoolVar(&dry, "dry-run", false, "show the decision without filing a request")
	c.Flags().BoolVar(&file, "file-only", false, "file the request without collecting a credential")
	a.client.addCollecting(c)
	return c
}

// withCredential calls use with a credential of the requested entitlement. It waits
// for approval as long as the flags permit.
func (a *app) withCredential(ctx context.Context, entitlement string, f askFlags, use func(context.Context, *api.Client, *api.Credential) error) error {
	ask, err := f.ask(entitlement)
	if err != nil {
		return err
	}
	return a.withClient(ctx, func(ctx context.Context, client *api.Client) error {
		credential, err := agent.Obtain(ctx, client, ask, a.waiting(f.wait))
		if err != nil {
			return a.waited(err)
		}
		return use(ctx, client, credential)
	})
}

// withCollected calls use with a credential of a request. It waits for approval as long
// as the flags permit.
func (a *app) withCollected(ctx context.Context, request string, f askFlags, use func(context.Context, *api.Client, *api.Credential) error) error {
	return a.withClient(ctx, func(ctx context.Context, client *api.Client) error {
		r, err := client.Request(ctx, request)
		if err != nil {
			return err
		}
		credential, err := agent.Collect(ctx, client, r, a.waiting(f.wait))
		if err != nil {
			return a.waited(err)
		}
		return use(ctx, client, credential)
	})
}

// waiting returns a Wait that shows its progress if a person watches.
func (a *app) waiting(wait time.Duration) agent.Wait {
	w := agent.Wait{For: wait}
	if interactive(a.err) {
		w.Progress = progressTo(a.err)
	}
	return w
}

// waited clears the progress after a wait that failed.
func (a *app) waited(err error) error {
	if interactive(a.err) {
		fmt.Fprint(a.err, clearLine)
	}
	return withResume(err)
}

const clearLine = "\r\x1b[K"

// progressTo shows the progress of a wait in one line of a terminal.
func progressTo(w io.Writer) func(agent.Progress) {
	started := false
	return func(p agent.Progress) {
		if !started { // the person may have to pass the id on to an approver
			fmt.Fprintf(w, "request %s is %s\n", p.Request.ID, p.Request.Status)
			started = true
		}
		if p.Request.Status != api.StatusPending {
			fmt.Fprintf(w, "%s%s\n", clearLine, decidedBy(p.Request))
			return
		}
		status := approvalsMissing(p.Request)
		if p.Err != nil {
			status = "the broker can't be reached; trying again"
		}
		fmt.Fprintf(w, "%s%s (%s left)", clearLine, status, timeLeft(p.Left))
	}
}

// withResume adds to the error of a flow how to continue it.
func withResume(err error) error {
	var pending *agent.PendingError
	var unreachable *agent.UnreachableError
	switch {
	case errors.As(err, &pending):
		detail := approvalsMissing(pending.Request)
		if pending.Interrupted {
			detail = "the wait was interrupted, and the request is still pending"
		}
		return &resumableError{&api.Error{Code: api.Pending, Detail: detail}, pending.Request.ID}
	case errors.As(err, &unreachable):
		return &resumableError{unreachable.Err, unreachable.RequestID}
	}
	return err
}

// A resumableError is an error after which the user can collect the credential later.
type resumableError struct {
	err     error
	request string
}

func (e *resumableError) Error() string { return e.err.Error() + "\n" + e.hint() }
func (e *resumableError) Unwrap() error { return e.err }

func (e *resumableError) hint() string {
	return fmt.Sprintf("To continue, run \"broker collect %s\".", printable(e.request))
}

// decidedBy describes how a request was decided.
func decidedBy(r *api.Request) string {
	var people []string
	for _, v := range r.Approvals.Given {
		people = append(people, printable(v.Person))
	}
	if len(people) == 0 {
		return r.Status
	}
	return r.Status + " by " + strings.Join(people, ", ")
}

// approvalsMissing describes the approvals that a request still needs.
func approvalsMissing(r *api.Request) string {
	var missing []string
	for _, n := range r.Approvals.Needed {
		if n.Have < n.Count {
			missing = append(missing, fmt.Sprintf("%d of %s", n.Count-n.Have, n.Group))
		}
	}
	var waits []string
	if len(missing) > 0 {
		waits = append(waits, "needs approval by "+strings.Join(missing, " and "))
	}
	if len(r.Awaits) > 0 {
		waits = append(waits, "waits for the risk assessment of supplier "+strings.Join(r.Awaits, " and "))
	}
	return strings.Join(waits, ", and ")
}

// timeLeft formats a duration to the second.
func timeLeft(d time.Duration) string { return api.Duration(d.Round(time.Second)).String() }

func (a *app) collectCommand() *cobra.Command {
	var wait time.Duration
	c := &cobra.Command{
		Use:   "collect REQUEST",
		Short: "Collect a credential of an approved request",
		Example: `  broker collect req_0658sg2b7puh5u0qv0s9k8g6nk
  broker collect req_0658sg2b7puh5u0qv0s9k8g6nk --wait 10m -o json`,
		RunE: func(c *cobra.Command, args []string) error {
			return a.withCollected(c.Context(), args[0], askFlags{wait: wait}, a.handOver)
		},
	}
	takesID(c, "request")
	addWait(c, &wait)
	a.client.addCollecting(c)
	return c
}

func (a *app) withdrawCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "withdraw REQUEST",
		Short: "Withdraw a pending request, or end one on your behalf",
		Long: `withdraw closes your own pending request. If an agent filed the request on your
behalf, withdraw ends it at any time: nothing more is collected, and its
credentials are revoked, also those of sub-agents.`,
		Example: `  broker withdraw req_0658sg2b7puh5u0qv0s9k8g6nk
  broker withdraw req_0658sg2b7puh5u0qv0s9k8g6nk --as-person`,
		RunE: func(c *cobra.Command, args []string) error {
			return a.withClient(c.Context(), func(ctx context.Context, client *api.Client) error {
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
  broker requests --inbox --risk high
  broker requests --requester '*' --search "INC-4711"
  broker requests req_0658sg2b7puh5u0qv0s9k8g6nk -o json`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 || len(args) == 1 && !isID("request", args[0]) {
				return usage("requests takes at most one request id, req_…")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			a.client.person = a.client.person || f.Inbox
			return a.withClient(c.Context(), func(ctx context.Context, client *api.Client) error {
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
				rows, subjects := make([][]string, len(page.Requests)), make([]string, len(page.Requests))
				for i, r := range page.Requests {
					rows[i] = []string{r.ID, r.Status, r.Entitlement, strings.Join(r.Scopes, " "), r.Requester, clock(r.CreatedAt)}
					subjects[i] = r.OnBehalfOf
				}
				a.noteCaller(ctx, client, cmp.Or(f.Requester, f.OnBehalfOf))
				if f.Inbox {
					return a.printInbox(page)
				}
				columns, rows := withSubjects(requestColumns, rows, subjects)
				return a.printPage(page, "requests", columns, rows, page.Next)
			})
		},
	}
	c.Flags().StringVar(&f.Status, "status", "", "pending, approved, denied, withdrawn, lapsed or ended")
	c.Flags().StringVar(&f.OnBehalfOf, "on-behalf-of", "", "list only requests on behalf of this person or workload, such as login/ana")
	c.Flags().StringVar(&f.Requester, "requester", "", "a SPIFFE ID, a person such as login/ana, or '*' for all whose requests you may view (default: you)")
	c.Flags().StringVar(&f.Team, "team", "", "list only requesters of this team")
	c.Flags().StringVar(&f.Risk, "risk", "", "low, medium or high")
	c.Flags().StringVarP(&f.Text, "search", "q", "", "words that the names, the justification or the ticket contain")
	c.Flags().BoolVar(&f.Inbox, "inbox", false, "list what waits for your decision, as a person, the riskiest first")
	c.Flags().StringVar(&f.Order, "order", "", "with --inbox: risk, oldest, newest or deadline (default: risk)")
	addPageFlags(c, &f.Entitlement, &f.Cursor, &f.Limit)
	completes(c, "risk", oneOf("low", "medium", "high"))
	completes(c, "order", oneOf("risk", "oldest", "newest", "deadline"))
	completes(c, "status", oneOf(api.StatusPending, api.StatusApproved, api.StatusDenied, api.StatusWithdrawn, api.StatusLapsed, api.StatusEnded))
	completes(c, "entitlement", a.completeEntitlement)
	a.client.addPerson(c)
	return c
}

// printInbox prints what waits for the caller's decision.
func (a *app) printInbox(page *api.RequestPage) error {
	rows := make([][]string, len(page.Requests))
	for i, r := range page.Requests {
		until, what := r.LapsesAt, "approval"
		if r.Review != nil {
			until, what = r.Review.DueAt, "review"
		}
		rows[i] = []string{r.ID, r.Risk, what, r.Entitlement, strings.Join(r.Scopes, " "), r.Requester, clock(until)}
	}
	return a.printPage(page, "requests wait for your decision", inboxColumns, rows, page.Next)
}

var inboxColumns = []string{"REQUEST", "RISK", "NEEDS", "ENTITLEMENT", "SCOPES", "REQUESTER", "UNTIL"}

// noteCaller prints a note if the caller of a list is a workload, which may view less than
// the person at the terminal.
func (a *app) noteCaller(ctx context.Context, client *api.Client, others string) {
	if others == "" || a.client.person {
		return
	}
	who, err := client.WhoAmI(ctx)
	if err != nil || who.Kind == "person" || who.ID == others {
		return
	}
	fmt.Fprintf(a.err, "listed as %s, which sees only what policy lets it view; to list as the person who is logged in, add --as-person\n", who.ID)
}

var requestColumns = []string{"REQUEST", "STATUS", "ENTITLEMENT", "SCOPES", "REQUESTER", "CREATED"}

// addPageFlags adds the flags that all paged lists have.
func addPageFlags(c *cobra.Command, entitlement, cursor *string, limit *int) {
	c.Flags().StringVar(entitlement, "entitlement", "", "list only this entitlement")
	c.Flags().StringVar(cursor, "cursor", "", "continue after an earlier page")
	c.Flags().IntVar(limit, "limit", 0, "the length of a page (default 50, at most 200)")
}

// printPage prints one page of a list.
func (a *app) printPage(page any, what string, columns []string, rows [][]string, next string) error {
	return a.printTable(page, func(w io.Writer) {
		if len(rows) == 0 && next == "" {
			fmt.Fprintln(w, "no "+what)
			return
		}
		if len(rows) == 0 { // one call searches a bounded number of rows
			fmt.Fprintf(w, "no %s among the newest that were searched\nmore: --cursor %s\n", what, next)
			return
		}
		for _, row := range append([][]string{columns}, rows...) {
			fmt.Fprintln(w, strings.Join(row, "\t"))
		}
		if next != "" {
			fmt.Fprintf(w, "more: --cursor %s\n", next)
		}
	})
}

func (a *app) printRequest(r *api.Request) error {
	return a.print(r, func(w io.Writer) { writeRequest(w, r) })
}

// showRequest shows a request as text, regardless of -o.
func (a *app) showRequest(to io.Writer, r *api.Request) {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	writeRequest(w, r)
	_ = w.Flush() // to a terminal
}

// clock formats a time in UTC.
func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }
