"use strict";
// Signing with passkeys: before a form is sent, the script fetches a challenge
// from the broker, has the passkey sign it, and adds the signature to the form.
(() => {
  const toBytes = (text) => Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
  const toText = (bytes) => btoa(String.fromCharCode(...new Uint8Array(bytes))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");

  // say shows an error, or with the role "status" the progress, above the form.
  function say(form, text, role = "alert") {
    let p = form.querySelector(":scope > [data-said]");
    if (!p || p.getAttribute("role") !== role) {
      if (p) p.remove();
      p = document.createElement("p");
      p.dataset.said = "";
      p.className = role === "alert" ? "failed" : "changed";
      p.setAttribute("role", role);
      form.prepend(p);
    }
    p.textContent = text;
    p.scrollIntoView({ block: "nearest" });
  }

  // words explains an error of the browser.
  function words(error) {
    if (error.name === "NotAllowedError") return "Signing was cancelled or took too long. Nothing was sent.";
    if (error.name === "InvalidStateError") return "This passkey is already enrolled.";
    if (error.name === "SecurityError") return "Your browser does not allow passkeys on this page.";
    return error.message || "Signing failed. Nothing was sent.";
  }

  async function ask(url, fields) {
    const answer = await fetch(url, { method: "POST", body: fields, credentials: "same-origin", redirect: "error" });
    const body = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error([body.detail || body.title || "The broker returned an unexpected answer.", ...(body.reasons || [])].join(" "));
    return body;
  }

  function put(form, name, value) {
    let input = form.querySelector(`input[name="${name}"]`);
    if (!input) {
      input = document.createElement("input");
      input.type = "hidden";
      input.name = name;
      form.append(input);
    }
    input.value = value;
  }

  // signOne signs what the fields say, and puts the signature into the form.
  async function signOne(form, where, fields, suffix) {
    const { publicKey, ticket } = await ask(where, fields);
    publicKey.challenge = toBytes(publicKey.challenge);
    for (const c of publicKey.allowCredentials) c.id = toBytes(c.id);
    const made = await navigator.credentials.get({ publicKey });
    put(form, "ticket" + suffix, ticket);
    put(form, "assertion" + suffix, JSON.stringify({
      id: toText(made.rawId), authenticator_data: toText(made.response.authenticatorData),
      client_data: toText(made.response.clientDataJSON), signature: toText(made.response.signature),
    }));
  }

  // signEach signs each selected request. A request that the broker refuses keeps the
  // others from nothing, but the first cancelled signature ends the signing. What is signed
  // is sent; the form marks the rest of the selection as unsigned.
  async function signEach(form, fields) {
    const selected = [...form.querySelectorAll('input[name^="digest."]:checked')];
    const common = [...fields].filter(([name]) => !name.startsWith("digest."));
    const unsigned = [];
    let failed = null, cancelled = false, signed = 0;
    for (const [i, box] of selected.entries()) {
      const id = box.name.slice("digest.".length);
      if (cancelled) {
        unsigned.push(id);
        continue;
      }
      const one = new URLSearchParams(common);
      one.set("digest", box.value);
      say(form, `Signing ${i + 1} of ${selected.length}.`, "status");
      try {
        await signOne(form, form.dataset.each + id + "/sign", one, "." + id);
        signed++;
      } catch (error) { // if the broker refused, it states the reason again when it decides
        failed ||= error;
        cancelled = error instanceof DOMException; // of the browser
        if (cancelled) unsigned.push(id);
      }
    }
    if (failed && !signed) throw failed;
    for (const id of unsigned) put(form, "unsigned." + id, "on");
  }

  // sign signs the decision of a form, or, if the form decides several requests, each
  // selected one.
  function sign(form, button) {
    const fields = new URLSearchParams(new FormData(form, button));
    if (form.dataset.each) return signEach(form, fields);
    return signOne(form, form.dataset.options || location.pathname + "/sign", fields, "");
  }

  async function enrol(form, button) {
    const { options, ticket } = await ask(form.dataset.enrol, new URLSearchParams(new FormData(form, button)));
    const publicKey = options.publicKey;
    publicKey.challenge = toBytes(publicKey.challenge);
    publicKey.user.id = toBytes(publicKey.user.id);
    for (const c of publicKey.excludeCredentials || []) c.id = toBytes(c.id);
    const made = await navigator.credentials.create({ publicKey });
    put(form, "ticket", ticket);
    put(form, "response", JSON.stringify({
      id: made.id, rawId: toText(made.rawId), type: made.type, clientExtensionResults: {},
      response: { clientDataJSON: toText(made.response.clientDataJSON), attestationObject: toText(made.response.attestationObject) },
    }));
  }

  for (const form of document.querySelectorAll("form[data-sign], form[data-enrol]")) {
    let ready = false, busy = false;
    form.addEventListener("submit", (event) => {
      const button = event.submitter;
      const job = form.dataset.enrol ? enrol : sign;
      if (ready || (form.dataset.sign !== undefined && (!button || !form.dataset.sign.split(" ").includes(button.value)))) return;
      event.preventDefault();
      if (busy) return; // a second press while the passkey signs
      if (!window.PublicKeyCredential) return say(form, "Your browser does not support passkeys.");
      for (const b of form.querySelectorAll("button:not([hidden])")) b.disabled = true;
      button.disabled = false;
      busy = true;
      job(form, button).then(() => {
        for (const b of form.querySelectorAll("button:not([hidden])")) b.disabled = false;
        ready = true;
        form.requestSubmit(button);
      }, (error) => {
        for (const b of form.querySelectorAll("button:not([hidden])")) b.disabled = false;
        busy = false;
        say(form, words(error));
      });
    });
  }
})();
