// Scores text in one call, as a stream, and generates a continuation: node score.js [ADDRESS]
//
// The client is made from the .proto files when it starts; nothing of deqlm's Python is used.
'use strict';

const path = require('node:path');

const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const PROTO_ROOT = path.join(__dirname, '..', '..', 'proto');
const FILES = ['scoring', 'generation', 'session'].map((name) => `deqlm/v1/${name}.proto`);
const DEADLINE_MS = 60_000;
const SOLVER = { tol: 1e-4 }; // tighter than a server's default, to compare two ways of scoring

function loadServices() {
  const definition = protoLoader.loadSync(FILES, {
    includeDirs: [PROTO_ROOT],
    keepCase: true, // field names as in the contract
    longs: Number, // counts here stay far below 2^53
    enums: String,
    defaults: true,
    oneofs: true,
  });
  return grpc.loadPackageDefinition(definition).deqlm.v1;
}

const deadline = () => ({ deadline: Date.now() + DEADLINE_MS });

// One call, one answer.
function unary(client, method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, new grpc.Metadata(), deadline(), (error, response) =>
      error ? reject(error) : resolve(response),
    );
  });
}

async function score(scoring, text) {
  const answer = await unary(scoring, 'Score', { input: { text }, top_k: 2, solver: SOLVER });
  console.log(`score: ${answer.call.scored_tokens} tokens, perplexity ${answer.call.perplexity.toFixed(3)}`);
  for (const token of answer.tokens) {
    const others = token.alternatives.map((other) => JSON.stringify(other.text)).join(' ');
    console.log(`  ${token.logprob.toFixed(4)}  ${JSON.stringify(token.text)}  (likely: ${others})`);
  }
  return answer;
}

// Text goes in cut anywhere; log-probabilities and the running perplexity come out.
async function scoreStream(scoring, sessionId, text) {
  const call = scoring.ScoreStream(new grpc.Metadata(), deadline());
  call.write({ config: { session_id: sessionId, solver: SOLVER } });
  for (let at = 0; at < text.length; at += 5) call.write({ text: text.slice(at, at + 5) });
  call.end();
  let last;
  for await (last of call) {
    const words = last.tokens.map((token) => JSON.stringify(token.text)).join(' ');
    if (words) console.log(`stream: perplexity ${last.call.perplexity.toFixed(3)} after ${words}`);
  }
  if (!last || !last.final) throw new Error('the stream ended without its last answer');
  return last;
}

async function generate(generation, sessionId) {
  const call = generation.Generate(
    {
      session_id: sessionId,
      sampling: { temperature: 0.8, seed: 1 },
      stop: { max_tokens: 20 },
    },
    new grpc.Metadata(),
    deadline(),
  );
  let text = '';
  let finished;
  for await (const { event, token, finished: end } of call) {
    if (event === 'token') text += token.text;
    if (event === 'finished') {
      text += end.text;
      finished = end;
    }
  }
  console.log(`generate: ${JSON.stringify(text)} (${finished.reason})`);
  return finished;
}

async function main(address) {
  const services = loadServices();
  const credentials = grpc.credentials.createInsecure();
  const scoring = new services.ScoringService(address, credentials);
  const generation = new services.GenerationService(address, credentials);
  const sessions = new services.SessionService(address, credentials);
  const text = 'It was the best of times , it was the worst of times .';

  const whole = await score(scoring, text);
  const { session } = await unary(sessions, 'CreateSession', {});
  try {
    const streamed = await scoreStream(scoring, session.session_id, text);
    const difference = Math.abs(whole.call.logprob_sum - streamed.call.logprob_sum);
    console.log(`one call and the stream differ by ${difference.toExponential(1)}`);
    await generate(generation, session.session_id);
  } finally {
    await unary(sessions, 'DeleteSession', { session_id: session.session_id });
    for (const client of [scoring, generation, sessions]) client.close();
  }
}

main(process.argv[2] ?? '127.0.0.1:50051').catch((error) => {
  console.error(`score.js: ${error.message}`);
  process.exitCode = 1;
});
